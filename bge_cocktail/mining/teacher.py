"""A cross-encoder that judges pairs: filters false negatives and gives scores to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bge_cocktail.errors import CocktailError
from bge_cocktail.options import Mining
from bge_cocktail.records import Record
from bge_cocktail.reranker import Reranker


class Scored:
    """A teacher that judges no pair twice.

    Args:
        teacher: Judges pairs.
    """

    def __init__(self, teacher: Reranker) -> None:
        self._teacher = teacher
        self._known: dict[tuple[str, str], float] = {}

    def __call__(self, query: str, documents: Sequence[str]) -> list[float]:
        """The score of each document for a query."""
        return [self._known[query, document] for document in documents]

    def learn(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Judge the pairs that weren't yet."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        if not new:
            return
        scores = np.asarray(self._teacher(new), np.float64)
        if not np.isfinite(scores).all():
            bad = new[int(np.flatnonzero(~np.isfinite(scores))[0])]
            raise CocktailError(
                f"the teacher gives NaN or infinite scores, first for: {bad[0][:60]!r} | {bad[1][:60]!r}"
            )
        self._known.update(zip(new, scores.tolist(), strict=True))

    def forget(self) -> None:
        """Keep no scores: the next records have other queries."""
        self._known.clear()


def teacher_limit(positives: Sequence[float], options: Mining) -> float:
    """The score above which a candidate is taken for relevant; infinite without a margin or limit."""
    lowest = min(positives)
    limit = float("inf")
    if options.teacher_margin is not None:
        limit = lowest - options.teacher_margin * abs(lowest)
    if options.teacher_max is not None:
        limit = min(limit, options.teacher_max)
    return limit


def with_scores(record: Record, scored: Scored) -> Record:
    """The record with the teacher's scores of all its texts."""
    return replace(
        record,
        pos_scores=tuple(scored(record.query, record.pos)),
        neg_scores=tuple(scored(record.query, record.neg)),
    )
