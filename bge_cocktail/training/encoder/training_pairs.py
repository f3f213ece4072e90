"""What is trained on: a row for every positive of every record, found again without holding their texts."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from bge_cocktail.core.errors import DataError
from bge_cocktail.core.runs import hash_value
from bge_cocktail.data.record import Record, normalise, short_key
from bge_cocktail.data.record_files import AT_ONCE, RecordStore, json_line
from bge_cocktail.options import TrainOptions


class TrainingPairs(Sequence[Record]):
    """Rows of one query and the positive to find; of the texts only hashes stay in memory, 30 bytes a row.

    A row is a record whose first positive is the one to find; the others of the query stay known.

    Args:
        records: In memory or on disk.
        options: How many negatives are asked for, and what becomes of records with fewer.

    Attributes:
        tasks: Names of the tasks; records without one are of the task "".
        task_of: The task of each row, as its place in `tasks`.
        query_keys: Hash of each row's query, in its normalised form.
        positive_keys: Hash of each row's positive.
        short: Rows with fewer negatives than asked for.
        longer: Rows with more.
        usable: For each task, rows that a kind of loss can learn from: ``positives`` (something to tell the positive
            from), ``teacher`` (scores of all own documents, two or more), ``scores`` (any score).
        weighted: Rows with a weight of their own.
        left_out: Why records were left out, and how many.
        hash: Of all records.
    """

    def __init__(self, records: Sequence[Record], options: TrainOptions) -> None:
        self._records = records
        parts = _looked_through(records, options)
        self.tasks = list(dict.fromkeys(task for part in parts for task in part.tasks))
        self.left_out = sum((part.left_out for part in parts), Counter[str]())
        self.short, self.longer, self.weighted = (
            sum(getattr(part, name) for part in parts) for name in ("short", "longer", "weighted")
        )
        self.usable: list[Counter[str]] = [Counter() for _ in self.tasks]
        numbers = {task: number for number, task in enumerate(self.tasks)}
        for part in parts:
            for (task, kinds), count in part.uses.items():
                self.usable[numbers[task]].update(dict.fromkeys(kinds, count))
        self._record_of = _joined(parts, "record_of", np.int64)
        self._positive_of = _joined(parts, "positive_of", np.int32)
        self.task_of = np.concatenate(
            [np.array([numbers[task] for task in part.tasks], np.int32)[np.array(part.task_of)] for part in parts]
        )
        self.query_keys: NDArray[np.uint64] = _joined(parts, "query_keys", np.uint64)
        self.positive_keys: NDArray[np.uint64] = _joined(parts, "positive_keys", np.uint64)
        self.hash = hash_records(records)
        self._order = np.argsort(self.query_keys, kind="stable")
        self._sorted = self.query_keys[self._order]

    def __len__(self) -> int:
        return len(self._record_of)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        record = self._records[int(self._record_of[index])]
        place = int(self._positive_of[index])
        if place == 0:
            return record
        scores = record.pos_scores
        return replace(record, pos=_first(record.pos, place), pos_scores=_first(scores, place) if scores else ())

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def asks_for_itself(self) -> int:
        """Return how many records have a positive that equals their query."""
        return len(np.unique(self._record_of[self.query_keys == self.positive_keys]))

    def known_positives(self, queries: Sequence[str]) -> Mapping[str, set[str]]:
        """Return all positives that any row gives for some queries; queries and texts in their normalised form."""
        positives: dict[str, set[str]] = {}
        for query in map(normalise, queries):
            if query in positives:
                continue
            key = np.uint64(short_key(query))
            first, last = (int(np.searchsorted(self._sorted, key, side)) for side in ("left", "right"))
            rows = {int(self._record_of[row]) for row in self._order[first:last]}
            records = (self._records[row] for row in sorted(rows)) if last - first > 1 else ()
            positives[query] = {
                normalise(text) for record in records if normalise(record.query) == query for text in record.pos
            }
        return positives


@dataclass
class _Part:
    """What is known of some of the records when they have been looked through; see `TrainingPairs`.

    Attributes:
        tasks: Names of their tasks.
        record_of: The record of each row.
        positive_of: Which of its positives is the one to find.
        task_of: Its task, as a place in `tasks`.
        uses: How many rows of a task can be learnt from by which kinds of loss.
    """

    tasks: list[str] = field(default_factory=list)
    # arrays, for a list would hold every number as an object
    record_of: array[int] = field(default_factory=lambda: array("q"))
    positive_of: array[int] = field(default_factory=lambda: array("i"))
    task_of: array[int] = field(default_factory=lambda: array("i"))
    query_keys: array[int] = field(default_factory=lambda: array("Q"))
    positive_keys: array[int] = field(default_factory=lambda: array("Q"))
    uses: Counter[tuple[str, tuple[str, ...]]] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    short: int = 0
    longer: int = 0
    weighted: int = 0


def _joined(parts: Sequence[_Part], name: str, kind: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.array(getattr(part, name), kind) for part in parts])


# records from which on those of a file are looked through by several processes
_MANY = 100_000


def _looked_through(records: Sequence[Record], options: TrainOptions) -> list[_Part]:
    """Return what is known of all records; many on disk are shared out over the processor's cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if not isinstance(records, RecordStore) or len(records) < _MANY or cores == 1:
        return [_look_through(records, options, range(len(records)))]
    size = -(-len(records) // (4 * cores))
    parts = [range(start, min(start + size, len(records))) for start in range(0, len(records), size)]
    # forked, so that a user's script isn't run anew in each; they parse, which needs no thread of the parent's
    with ProcessPoolExecutor(cores, get_context("fork"), _begin_looking, (records, options)) as pool:
        looked = list(pool.map(_look_through_shared, parts))
    for _, notes in looked:
        records.note(notes)
    return [part for part, _ in looked]


_SHARED: list[Any] = []


def _begin_looking(records: RecordStore, options: TrainOptions) -> None:
    records.quiet()
    _SHARED[:] = [records, options]


def _look_through_shared(places: range) -> tuple[_Part, set[str]]:
    records, options = _SHARED
    return _look_through(records, options, places), records.noted


def _look_through(records: Sequence[Record], options: TrainOptions, places: range) -> _Part:
    """Return what is known of some of the records.

    Raises:
        DataError: One has too few negatives, and shall be refused.
    """
    part = _Part()
    number_of: dict[str, int] = {}
    settings: list[TrainOptions] = []
    for place, record in zip(places, _read(records, places), strict=True):
        task = record.task or ""
        if task not in number_of:
            number_of[task] = len(part.tasks)
            part.tasks.append(task)
            settings.append(options.of_task(task))
        own = settings[number_of[task]]
        if record.weight == 0:
            part.left_out["have weight 0"] += 1
            continue
        if len(record.neg) < own.negatives:
            if options.too_few_negatives == "drop":
                part.left_out["have fewer negatives than asked for"] += 1
                continue
            if options.too_few_negatives == "refuse":
                raise DataError(
                    f"record {place + 1} ({record.query[:60]!r}) has {len(record.neg)} negatives, {own.negatives} are "
                    "asked for: mine more, ask for fewer, or allow fewer (too_few_negatives)"
                )
        query = short_key(record.query)
        for number, positive in enumerate(record.pos):
            if positive in record.pos[:number]:
                continue
            part.record_of.append(place)
            part.positive_of.append(number)
            part.task_of.append(number_of[task])
            part.query_keys.append(query)
            part.positive_keys.append(short_key(positive))
            part.short += len(record.neg) < own.negatives
            part.longer += len(record.neg) > own.negatives
            part.weighted += record.weight != 1
            part.uses[task, _uses(record, own)] += 1
    return part


def _read(records: Sequence[Record], places: range) -> Iterator[Record]:
    """Yield some of the records, of a file a few at a time."""
    for start in range(places.start, places.stop, AT_ONCE):
        yield from records[start : min(start + AT_ONCE, places.stop)]


def hash_records(records: Sequence[Record]) -> str:
    """Return the hash that the rows of these records have."""
    known: str | None = getattr(records, "hash", None)
    if known is not None:
        return known
    digest = xxhash.xxh3_128()
    for record in records:
        digest.update(json_line(record.to_json()))
    return digest.hexdigest()


def hash_retrieval(judged: Any) -> str:
    """Hash of a retrieval task, or of none."""
    return hash_value([dict(judged.corpus), dict(judged.queries), dict(judged.qrels)] if judged else None)


def _uses(record: Record, options: TrainOptions) -> tuple[str, ...]:
    """Return what kinds of loss can learn from a record."""
    negatives = min(len(record.neg), options.negatives)
    kinds: tuple[str, ...] = ()
    if negatives or (record.in_batch_negatives and options.in_batch_negatives):
        kinds += ("positives",)
    if negatives and record.pos_scores and record.neg_scores:
        kinds += ("teacher",)
    if record.pos_scores or (negatives and record.neg_scores):
        kinds += ("scores",)
    return kinds


def _first(values: tuple[Any, ...], place: int) -> tuple[Any, ...]:
    """Return the value at a place first, then the others."""
    return (values[place], *values[:place], *values[place + 1 :])
