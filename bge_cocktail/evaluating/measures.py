"""Measures of a ranked list against judgements, as trec_eval defines them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import UsageError, nearest
from bge_cocktail.core.registry import Registry

Floats = NDArray[np.float64]
# bounds the memory of the grades of all ranks
QUERIES_AT_ONCE = 2048


_NAME = re.compile(r"([A-Za-z-]+)(?:@(\d+))?")


@dataclass(frozen=True, slots=True)
class Rankings:
    """What some queries got.

    Attributes:
        gains: Grades of the retrieved documents in their order, 0 where one isn't judged relevant and where there are
            no more; shape (queries, ranks).
        ideal: Grades of all relevant documents, from high to low, then 0; shape (queries, most relevant).
        relevant: How many documents are relevant, at least one; shape (queries,).
    """

    gains: Floats
    ideal: Floats
    relevant: NDArray[np.int64]

    def hits(self, k: int) -> NDArray[np.bool_]:
        """Return which of the first k ranks hold a relevant document, shape (queries, at most k)."""
        return np.asarray(self.gains[:, :k] > 0)


Measure = Callable[[Rankings, int], Floats]
"""Takes rankings and the rank up to which it looks; gives the value of each query."""
measures: Registry[Measure] = Registry("measures")


@measures("nDCG")
def ndcg(rankings: Rankings, k: int) -> Floats:
    """Discounted gain (grades, linear) relative to the best order's; trec_eval's ndcg_cut."""
    return np.asarray(_dcg(rankings.gains[:, :k]) / _dcg(rankings.ideal[:, :k]))


@measures("MAP")
def average_precision(rankings: Rankings, k: int) -> Floats:
    """Mean of the precision at each relevant document, over all relevant ones; trec_eval's map_cut."""
    hits = rankings.hits(k)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    return np.asarray((precision * hits).sum(axis=1) / rankings.relevant)


@measures("Recall")
def recall(rankings: Rankings, k: int) -> Floats:
    """Share of the relevant documents that are found; trec_eval's recall."""
    return np.asarray(rankings.hits(k).sum(axis=1) / rankings.relevant)


@measures("P", rank="needed")
def precision(rankings: Rankings, k: int) -> Floats:
    """Share of the first k ranks that hold relevant documents, empty ranks too; trec_eval's P."""
    return np.asarray(rankings.hits(k).sum(axis=1) / k)


@measures("MRR")
def reciprocal_rank(rankings: Rankings, k: int) -> Floats:
    """One through the rank of the first relevant document; trec_eval's recip_rank."""
    hits = rankings.hits(k)
    if not hits.shape[1]:
        return np.zeros(len(hits))
    return np.asarray(np.where(hits.any(axis=1), 1 / (hits.argmax(axis=1) + 1), 0.0))


@measures("hit", rank="needed")
def hit(rankings: Rankings, k: int) -> Floats:
    """1 where a relevant document is among the first k; trec_eval's success."""
    return rankings.hits(k).any(axis=1).astype(float)


@measures("R-precision", rank="never")
def r_precision(rankings: Rankings, _k: int) -> Floats:
    """Precision at the rank that is the number of relevant documents; trec_eval's Rprec."""
    hits = rankings.hits(rankings.gains.shape[1])
    within = np.arange(hits.shape[1]) < rankings.relevant[:, None]
    return np.asarray((hits & within).sum(axis=1) / rankings.relevant)


def parse_measure(name: str) -> tuple[str, int | None]:
    """``nDCG@10`` as (nDCG, 10); without a rank, None.

    Raises:
        UsageError: An unknown name, or a rank where none goes or one is needed.
    """
    match = _NAME.fullmatch(name)
    family = match[1] if match else name
    if family not in measures:
        raise UsageError(f"no measure '{name}'.{nearest(family, measures)}")
    rank = int(match[2]) if match and match[2] else None
    wanted = measures.trait(family, "rank")
    if rank == 0 or (wanted == "needed" and rank is None):
        raise UsageError(f"{family} needs the rank up to which it looks: {family}@10")
    if wanted == "never" and rank is not None:
        raise UsageError(f"{family} looks at as many ranks as there are relevant documents; leave out @{rank}")
    return family, rank


def measure_run(
    run: Mapping[str, Collection[str]], qrels: Mapping[str, Mapping[str, int]], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Measures of every query.

    Args:
        run: Retrieved ids of each query, best first; a query that is missing counts 0.
        qrels: Grades; above 0 is relevant. Queries without a relevant document are left out, as in trec_eval.
        names: Such as ``nDCG@10``; without a rank, the whole list is looked at.

    Returns:
        For each measure the value of each query.
    """
    parsed = {name: parse_measure(name) for name in names}
    per_query: dict[str, dict[str, float]] = {name: {} for name in names}
    judged = [query for query, grades in qrels.items() if any(grade > 0 for grade in grades.values())]
    for start in range(0, len(judged), QUERIES_AT_ONCE):
        queries = judged[start : start + QUERIES_AT_ONCE]
        rankings = _rankings([run.get(query, ()) for query in queries], [qrels[query] for query in queries])
        everything = max(rankings.gains.shape[1], rankings.ideal.shape[1])
        for name, (family, rank) in parsed.items():
            values = measures[family](rankings, rank or everything)
            per_query[name].update(zip(queries, values.tolist(), strict=True))
    return per_query


def _rankings(run: Sequence[Collection[str]], qrels: Sequence[Mapping[str, int]]) -> Rankings:
    gains = np.zeros((len(run), max(map(len, run), default=0)))
    grades = [sorted((grade for grade in own.values() if grade > 0), reverse=True) for own in qrels]
    relevant = np.array([len(own) for own in grades], np.int64)
    ideal = np.zeros((len(run), int(relevant.max(initial=0))))
    for row, (ranked, own, best) in enumerate(zip(run, qrels, grades, strict=True)):
        ideal[row, : len(best)] = best
        # few of the retrieved documents are judged
        for place, grade in [(place, own[document]) for place, document in enumerate(ranked) if document in own]:
            gains[row, place] = max(grade, 0)
    return Rankings(gains, ideal, relevant)


def _dcg(gains: Floats) -> Floats:
    return np.asarray(gains @ (1 / np.log2(np.arange(2, gains.shape[1] + 2))))


def macro_f1(hits: Floats, total: Floats) -> Floats:
    """Return the mean over the classes of F1, the harmonic mean of precision and recall.

    A class that is neither in the truth nor predicted doesn't count in the mean; where none is, it is 1.

    Args:
        hits: How often each class was rightly predicted, shape (..., classes).
        total: How often it is in the truth, and how often it was predicted, together; same shape.

    Returns:
        Shape (...).
    """
    total = np.asarray(total)
    seen = total > 0
    f1 = np.divide(2 * hits, total, out=np.zeros(np.shape(hits)), where=seen)
    classes = seen.sum(axis=-1)
    return np.where(classes > 0, f1.sum(axis=-1) / np.maximum(classes, 1), 1.0)
