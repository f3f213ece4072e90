"""Which rows make a batch, and a batch: tokens in chunks of nearly equal length, what documents are to queries."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from bge_cocktail.core.errors import UsageError
from bge_cocktail.core.runs import note_finding
from bge_cocktail.data.record import Record
from bge_cocktail.losses.total import batch_targets
from bge_cocktail.models.embed import NO_LIMIT, batches_by_tokens, check_room, token_counts, tokens_at_once, truncated
from bge_cocktail.models.prompts import Prompts
from bge_cocktail.models.tokens import Packer, tokenise
from bge_cocktail.options import TrainOptions
from bge_cocktail.training.encoder.training_pairs import TrainingPairs

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

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

    def __init__(self, rows: TrainingPairs, options: TrainOptions, processes: int = 1) -> None:
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
            return [int(share) for share in natural]
        shares = np.array([len(group) for group in self._groups]) ** self._options.mix_power
        return [max(1, round(share)) for share in natural.sum() * shares / shares.sum()]

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

    def _once(self, group: NDArray[np.int64], generator: np.random.Generator) -> Iterator[Batch]:
        """Every row of a group once, no query or positive twice in a batch as long as others are left to choose."""
        queries, positives = self._rows.query_keys, self._rows.positive_keys
        order = deque(generator.permutation(group).tolist())
        waiting: deque[int] = deque()
        batches: list[Batch] = []  # the last one waits, for the end may take rows of it
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
            yield from batches
            batches = [batch]
        # what repeats more often than there are batches: known positives are left out of the loss
        batch += waiting
        batches += [batch[start : start + self._size] for start in range(0, len(batch), self._size)]
        # alone, a row would have nothing to be told from; and every process needs a text to embed
        while len(batches) > 1 and len(batches[-1]) < self._least:
            batches[-1].insert(0, batches[-2].pop())
        yield from batches


# rows whose texts are counted before the training
SAMPLE = 200


class Collator:
    """Makes batches; each text of a batch is in it once, and each process gets its share of them by length.

    Args:
        model: For its tokenizer.
        rows: What to train on.
        options: Negatives, prompts of tasks, lengths.
        prompts: Put before queries and documents.
        process: Which process this is, and how many there are.
        precision: Of the computation; with the device, it says how large chunks are best.
        pack: Makes packed chunks; without it, they are padded.
    """

    # read by sentence-transformers' trainer: the data has no labels
    valid_label_columns: Sequence[str] = ()

    def __init__(
        self,
        model: SentenceTransformer,
        rows: TrainingPairs,
        options: TrainOptions,
        prompts: Prompts,
        process: tuple[int, int] = (0, 1),
        precision: str = "fp32",
        pack: Packer | None = None,
    ) -> None:
        self._model, self._rows, self._options, self._prompts = model, rows, options, prompts
        self._pack = pack
        self._process, self._processes = process
        self._budget = options.chunk_tokens or tokens_at_once(model.device.type, precision, training=True)
        self._longest = model.max_seq_length
        for own in (options, *(options.of_task(task) for task in options.tasks)):
            query, document, longest, longest_query = self._reading(own)
            check_room(model, query, longest_query)
            check_room(model, document, longest)

    def note_cut(self) -> None:
        """Note it where most texts are longer than what is read of them, by a sample of the rows."""
        query, document, longest, longest_query = self._reading(self._options)
        rows = [
            self._rows[row] for row in np.linspace(0, len(self._rows) - 1, min(len(self._rows), SAMPLE)).astype(int)
        ]
        for texts, prompt, limit, what in (
            ([row.query for row in rows], query, longest_query, "queries"),
            ([row.pos[0] for row in rows], document, longest, "documents"),
        ):
            counts = token_counts(self._model, [truncated(text, limit) for text in texts], prompt)
            cut = sum(count > limit for count in counts)
            if cut > len(texts) / 2:
                what = f"{what} (a sample) are longer than {limit} tokens and are cut there"
                note_finding("texts cut", "train", cut, len(texts), what)

    def _reading(self, options: TrainOptions) -> tuple[str, str, int, int]:
        """Return the prompts of queries and documents, and the longest document and query."""
        query, document = options.query_prompt, options.document_prompt
        longest = options.max_length or self._longest or NO_LIMIT
        return (
            self._prompts.query if query is None else query,
            self._prompts.document if document is None else document,
            longest,
            options.query_max_length or longest,
        )

    def __call__(self, batch: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """The chunks of this process, and for all of the batch its targets.

        Args:
            batch: Epoch and row, as `Batches` gives them.

        Returns:
            ``chunks``: features for the model; ``targets``: tensors of `Targets` less the documents, ``counts`` of
            texts that each process embeds, ``order`` of all texts (queries, then documents) in what they embed
            together, ``task``, and the numbers of the ``rows``.
        """
        records = [self._rows[row] for _, row in batch]
        task = records[0].task or ""
        options = self._options.of_task(task)
        if self._options.draw == "random":
            draws = zip(records, batch, strict=True)
            records = [_with_negatives(record, options.negatives, (options.seed, *one)) for record, one in draws]
        targets = batch_targets(
            records,
            negatives=options.negatives,
            known_positives=self._rows.known_positives([record.query for record in records]),
            in_batch_negatives=options.in_batch_negatives,
            blocks=1 if options.cross_device_negatives else self._processes,
        )
        query_prompt, document_prompt, longest, longest_query = self._reading(options)
        texts = [
            (
                record.query,
                query_prompt if record.prompt is None else record.prompt,
                longest_query,
            )
            for record in records
        ] + [(text, document_prompt, longest) for text in targets.documents]
        # every process gets long and short texts alike
        by_length = sorted(range(len(texts)), key=lambda index: (texts[index][1:], -len(texts[index][0]), index))
        shares = [by_length[process :: self._processes] for process in range(self._processes)]
        embedded, chunks = self._chunks(texts, shares[self._process])
        shares[self._process] = embedded
        return {
            "chunks": chunks,
            "targets": {
                "relevance": torch.from_numpy(targets.relevance),
                "own": torch.from_numpy(targets.own),
                "scores": torch.from_numpy(targets.scores),
                "embedded": torch.tensor(embedded),
                "counts": [len(share) for share in shares],
                "task": task,
                "rows": [row for _, row in batch],
            },
        }

    def _chunks(
        self, texts: Sequence[tuple[str, str, int]], share: Sequence[int]
    ) -> tuple[list[int], list[dict[str, Any]]]:
        """Features of some of the texts, sorted by number of tokens and cut by a budget; and the order they are in."""
        order: list[int] = []
        chunks: list[dict[str, Any]] = []
        for prompt, longest in dict.fromkeys(texts[index][1:] for index in share):
            alike = [index for index in share if texts[index][1:] == (prompt, longest)]
            self._model.max_seq_length = longest
            short = [truncated(texts[index][0], longest) for index in alike]
            tokens = tokenise(self._model, short, prompt)
            counts = token_counts(self._model, short, prompt) if tokens is None else tokens.lengths.tolist()
            for chunk in batches_by_tokens(counts, self._budget, packed=self._pack is not None):
                order += [alike[place] for place in chunk]
                if tokens is None:  # of a model that only looks words up
                    chosen = [short[place] for place in chunk]
                    chunks.append(self._model.preprocess(chosen, prompt=prompt or None))
                else:
                    chunks.append(tokens.padded(chunk) if self._pack is None else self._pack(tokens, chunk))
        self._model.max_seq_length = self._longest
        return order, chunks


def _with_negatives(record: Record, negatives: int, seed: tuple[int, ...]) -> Record:
    """Return a record with a draw of its negatives, the same in every process and after a crash."""
    if len(record.neg) <= negatives:
        return record
    chosen = sorted(np.random.default_rng(seed).permutation(len(record.neg))[:negatives].tolist())
    scores = tuple(record.neg_scores[place] for place in chosen) if record.neg_scores else ()
    return replace(record, neg=tuple(record.neg[place] for place in chosen), neg_scores=scores)
