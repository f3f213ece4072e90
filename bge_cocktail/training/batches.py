"""Which rows make a batch: of one task, no positive twice, every row once in an epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.errors import UsageError
from bge_cocktail.options import Training
from bge_cocktail.training.rows import TrainingRows

Batch = list[int]
# rows that wait for a batch without their query and positive; more are not looked through
WAITING = 1000


class Batches:
    """The batches of each epoch, seeded; the same for every process, which take their part of each.

    Args:
        rows: What to train on.
        options: Size, mixing, seed.
        processes: How many share a batch; each has `batch_size` rows of it.

    Raises:
        UsageError: A task can't give every process a text.
    """

    def __init__(self, rows: TrainingRows, options: Training, processes: int = 1) -> None:
        self._rows, self._options = rows, options
        self._size = options.batch_size * processes
        self._least = max(2, processes)
        self._epoch = 0
        self._groups = self._make_groups()
        self._counts = self._batches_of_groups()
        if min(map(len, self._groups)) < processes:
            raise UsageError(f"a task with options of its own has fewer rows than there are processes ({processes})")

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next; the trainer calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return sum(self._counts)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Batches of pairs of epoch and row."""
        generator = np.random.default_rng([self._options.seed, self._epoch])
        lanes = [self._lane(group, count, generator) for group, count in zip(self._groups, self._counts, strict=True)]
        turns = np.repeat(np.arange(len(lanes)), self._counts)
        if self._options.mix == "shuffled":
            generator.shuffle(turns)
        else:  # the turns of each spread evenly over the epoch, so that all end together
            at = np.concatenate([(np.arange(count) + 0.5) / count for count in self._counts if count])
            turns = turns[np.argsort(at, kind="stable")]
        for turn in turns:
            yield [(self._epoch, row) for row in next(lanes[turn])]

    def _make_groups(self) -> list[NDArray[np.int64]]:
        """Rows by task; tasks too small for a batch share theirs, unless they have options or heads of their own."""
        groups: list[NDArray[np.int64]] = []
        small: list[NDArray[np.int64]] = []
        for number, task in enumerate(self._rows.tasks):
            rows = np.flatnonzero(self._rows.task_of == number)
            if not len(rows):
                continue
            shared = len(rows) < self._size and task not in self._options.tasks and not self._options.task_heads
            (small if shared else groups).append(rows)
        return [*groups, np.concatenate(small)] if small else groups

    def _batches_of_groups(self) -> list[int]:
        """Batches that each group gives in an epoch; with a power below 1, as many in all as without."""
        natural = np.array([-(-len(group) // self._size) for group in self._groups])
        if self._options.mix_power == 1 or len(natural) < 2:
            return [int(one) for one in natural]
        shares = np.array([len(group) for group in self._groups]) ** self._options.mix_power
        return [max(1, round(one)) for one in natural.sum() * shares / shares.sum()]

    def _lane(self, group: NDArray[np.int64], count: int, generator: np.random.Generator) -> Iterator[Batch]:
        """Batches of one group: as often through its rows as it takes, each time in a new order."""
        seed = generator.integers(2**63)
        given = 0
        for turn in range(count):
            batches = self._once(group, np.random.default_rng([int(seed), turn]))
            for batch in batches:
                given += 1
                yield batch
                if given == count:
                    return

    def _once(self, group: NDArray[np.int64], generator: np.random.Generator) -> list[Batch]:
        """Every row of a group once, no query or positive twice in a batch as long as others are left to choose."""
        queries, positives = self._rows.query_keys, self._rows.positive_keys
        order = deque(generator.permutation(group).tolist())
        waiting: deque[int] = deque()
        batches: list[Batch] = []
        while True:
            batch: Batch = []
            seen: set[Any] = set()
            # first those that waited for a batch without their like
            for source, most in ((waiting, min(len(waiting), WAITING)), (order, len(order))):
                for _ in range(most):
                    if len(batch) == self._size:
                        break
                    row = source.popleft()
                    keys = {("query", queries[row]), ("positive", positives[row])}
                    if keys & seen:
                        waiting.append(row)
                    else:
                        batch.append(row)
                        seen |= keys
            if len(batch) < self._size:
                break
            batches.append(batch)
        # what repeats more often than there are batches: known positives are left out of the loss
        batch += waiting
        batches += [batch[start : start + self._size] for start in range(0, len(batch), self._size)]
        # alone, a row would have nothing to be told from; and every process needs a text to embed
        while len(batches) > 1 and len(batches[-1]) < self._least:
            batches[-1].insert(0, batches[-2].pop())
        return batches
