"""What is trained on: a row for every positive of every record, found again without holding their texts."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from bge_cocktail.core.errors import DataError
from bge_cocktail.core.runs import hash_value
from bge_cocktail.data.record import Record, normalise, short_key
from bge_cocktail.data.record_files import json_line
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
        self.tasks: list[str] = []
        self.left_out: Counter[str] = Counter()
        self.short = self.longer = 0
        number_of: dict[str, int] = {}
        settings: list[TrainOptions] = []
        known: Any = getattr(records, "hash", None)  # a file's, where they stay on disk
        digest = xxhash.xxh3_128()
        # arrays, for a list would hold every number as an object
        record_of, positive_of, task_of = array("q"), array("i"), array("i")
        query_keys, positive_keys = array("Q"), array("Q")
        uses: Counter[tuple[int, tuple[str, ...]]] = Counter()
        self.usable: list[Counter[str]] = []
        self.weighted = 0
        for place, record in enumerate(records):
            if known is None:
                digest.update(json_line(record.to_json()))
            task = record.task or ""
            if task not in number_of:
                number_of[task] = len(self.tasks)
                self.tasks.append(task)
                settings.append(options.of_task(task))
                self.usable.append(Counter())
            wanted = settings[number_of[task]].negatives
            if record.weight == 0:
                self.left_out["have weight 0"] += 1
                continue
            if len(record.neg) < wanted:
                if options.too_few_negatives == "drop":
                    self.left_out["have fewer negatives than asked for"] += 1
                    continue
                if options.too_few_negatives == "refuse":
                    raise DataError(
                        f"record {place + 1} ({record.query[:60]!r}) has {len(record.neg)} negatives, {wanted} are "
                        "asked for: mine more, ask for fewer, or allow fewer (too_few_negatives)"
                    )
            query = short_key(record.query)
            for number, positive in enumerate(record.pos):
                if positive in record.pos[:number]:
                    continue
                record_of.append(place)
                positive_of.append(number)
                task_of.append(number_of[task])
                query_keys.append(query)
                positive_keys.append(short_key(positive))
                self.short += len(record.neg) < wanted
                self.longer += len(record.neg) > wanted
                self.weighted += record.weight != 1
                uses[number_of[task], _uses(record, settings[number_of[task]])] += 1
        for (number, kinds), count in uses.items():
            self.usable[number].update(dict.fromkeys(kinds, count))
        self._record_of = np.array(record_of, np.int64)
        self._positive_of = np.array(positive_of, np.int32)
        self.task_of = np.array(task_of, np.int32)
        self.query_keys: NDArray[np.uint64] = np.array(query_keys, np.uint64)
        self.positive_keys: NDArray[np.uint64] = np.array(positive_keys, np.uint64)
        self.hash = known or digest.hexdigest()
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
