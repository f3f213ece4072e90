"""What the documents of a batch are to its queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.records import Record, normalise

LEFT_OUT = -1.0


@dataclass(frozen=True, slots=True)
class Targets:
    """What the documents of a batch are to its queries.

    Attributes:
        documents: The documents, each once.
        relevance: Shape (queries, documents): the record's weight at its positive, 0 at negatives, -1 at documents
            that don't count for the query.
        own: Shape (queries, group): columns of each record's positive, then of its own negatives; -1 fills up.
        scores: Shape (queries, group): the teacher's scores of those; NaN where it gave none.
    """

    documents: list[str]
    relevance: NDArray[np.float32]
    own: NDArray[np.int64]
    scores: NDArray[np.float32]


def batch_targets(
    records: Sequence[Record],
    *,
    negatives: int,
    known_positives: Mapping[str, set[str]] | None = None,
    in_batch_negatives: bool = True,
    blocks: int = 1,
) -> Targets:
    """The documents of a batch, each once, and what each is to each query.

    Args:
        records: The batch; the first positive of each is the one to find.
        negatives: Hard negatives taken of each record, the first ones.
        known_positives: From `positives_by_query`, to know positives that other records give for a query.
        in_batch_negatives: Whether the documents of other records are negatives; a record's own word comes first.
        blocks: Parts of the batch, one for each process, that don't see each other's documents.
    """
    groups = [_own_documents(record, negatives) for record in records]
    documents: dict[str, int] = {}
    for text in (text for group in groups for text in group):
        documents.setdefault(text, len(documents))
    keys: dict[str, list[int]] = {}
    for column, text in enumerate(documents):
        keys.setdefault(normalise(text), []).append(column)
    relevance = np.zeros((len(records), len(documents)), np.float32)
    own = np.full((len(records), max(map(len, groups), default=0)), -1, np.int64)
    scores = np.full(own.shape, np.nan, np.float32)
    for row, (record, group) in enumerate(zip(records, groups, strict=True)):
        mine = [documents[text] for text in group]
        own[row, : len(mine)] = mine
        scores[row, : len(mine)] = list(group.values())
        if not (record.in_batch_negatives and in_batch_negatives):
            relevance[row] = LEFT_OUT
            relevance[row, mine[1:]] = 0
        positives = {normalise(text) for text in record.pos}
        if known_positives is not None:
            positives |= known_positives.get(normalise(record.query), set())
        # in an order of its own, for sets have none that repeats
        relevance[row, sorted(column for key in positives for column in keys.get(key, ()))] = LEFT_OUT
        relevance[row, mine[0]] = record.weight
    if blocks > 1:
        _separate(relevance, own, blocks)
    return Targets(list(documents), relevance, own, scores)


def _own_documents(record: Record, negatives: int) -> dict[str, float]:
    """The positive, then the negatives, each text once; with the teacher's scores, or NaN."""
    scores = record.neg_scores or (np.nan,) * len(record.neg)
    group = {record.pos[0]: record.pos_scores[0] if record.pos_scores else np.nan}
    for text, score in zip(record.neg[:negatives], scores[:negatives], strict=True):
        group.setdefault(text, score)
    return group


def _separate(relevance: NDArray[np.float32], own: NDArray[np.int64], blocks: int) -> None:
    """Leave out, for each part of the batch, the documents that only other parts hold."""
    for rows in np.array_split(np.arange(len(own)), blocks):
        foreign = np.ones(relevance.shape[1], bool)
        foreign[own[rows][own[rows] >= 0]] = False
        relevance[np.ix_(rows, np.flatnonzero(foreign))] = LEFT_OUT


def batch_relevance(
    records: Sequence[Record], *, negatives: int, known_positives: Mapping[str, set[str]] | None = None
) -> tuple[list[str], NDArray[np.float32]]:
    """The documents and the relevance of `batch_targets`."""
    targets = batch_targets(records, negatives=negatives, known_positives=known_positives)
    return targets.documents, targets.relevance
