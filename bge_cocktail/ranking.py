"""Measures of a ranked list against judgements, as trec_eval defines them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.errors import UsageError, nearest
from bge_cocktail.registry import Registry

_NAME = re.compile(r"([A-Za-z-]+)(?:@(\d+))?")


@dataclass(frozen=True, slots=True)
class Ranking:
    """What a query got.

    Attributes:
        gains: Grades of the retrieved documents in their order, 0 where one isn't judged relevant; shape (retrieved,).
        ideal: Grades of all relevant documents, from high to low; shape (relevant,), at least one.
    """

    gains: NDArray[np.float64]
    ideal: NDArray[np.float64]


Measure = Callable[[Ranking, int], float]
"""Takes a ranking and the rank up to which it looks."""
measures: Registry[Measure] = Registry("measures")
# traits: rank (needed: without one, it has no meaning; never: it has its own)


@measures("nDCG")
def ndcg(ranking: Ranking, k: int) -> float:
    """Discounted gain (grades, linear) relative to the best order's; trec_eval's ndcg_cut."""
    return _dcg(ranking.gains[:k]) / _dcg(ranking.ideal[:k])


@measures("MAP")
def average_precision(ranking: Ranking, k: int) -> float:
    """Mean of the precision at each relevant document, over all relevant ones; trec_eval's map_cut."""
    hits = ranking.gains[:k] > 0
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].sum() / len(ranking.ideal))


@measures("Recall")
def recall(ranking: Ranking, k: int) -> float:
    """Share of the relevant documents that are found; trec_eval's recall."""
    return float((ranking.gains[:k] > 0).sum() / len(ranking.ideal))


@measures("P", rank="needed")
def precision(ranking: Ranking, k: int) -> float:
    """Share of the first k ranks that hold relevant documents, empty ranks too; trec_eval's P."""
    return float((ranking.gains[:k] > 0).sum() / k)


@measures("MRR")
def reciprocal_rank(ranking: Ranking, k: int) -> float:
    """One through the rank of the first relevant document; trec_eval's recip_rank."""
    hits = np.flatnonzero(ranking.gains[:k] > 0)
    return 1 / (int(hits[0]) + 1) if len(hits) else 0.0


@measures("hit", rank="needed")
def hit(ranking: Ranking, k: int) -> float:
    """1 where a relevant document is among the first k; trec_eval's success."""
    return float((ranking.gains[:k] > 0).any())


@measures("R-precision", rank="never")
def r_precision(ranking: Ranking, _k: int) -> float:
    """Precision at the rank that is the number of relevant documents; trec_eval's Rprec."""
    count = len(ranking.ideal)
    return float((ranking.gains[:count] > 0).sum() / count)


def parse_measure(name: str) -> tuple[str, int | None]:
    """``nDCG@10`` as (nDCG, 10); without a rank, None.

    Raises:
        UsageError: An unknown name, or a rank where none goes or one is needed.
    """
    match = _NAME.fullmatch(name)
    family = match[1] if match else name
    if family not in measures:
        raise UsageError(f"no measure '{name}'; there are {', '.join(measures)}.{nearest(family, measures)}")
    rank = int(match[2]) if match and match[2] else None
    wanted = measures.trait(family, "rank")
    if rank == 0 or (wanted == "needed" and rank is None):
        raise UsageError(f"{family} needs the rank up to which it looks: {family}@10")
    if wanted == "never" and rank is not None:
        raise UsageError(f"{family} looks at as many ranks as there are relevant documents; leave out @{rank}")
    return family, rank


def measure_run(
    run: Mapping[str, Sequence[str]], qrels: Mapping[str, Mapping[str, int]], names: Sequence[str]
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
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    for query, grades in qrels.items():
        ideal = np.sort(np.array([grade for grade in grades.values() if grade > 0], float))[::-1]
        if not len(ideal):
            continue
        get = grades.get
        ranked = run.get(query, ())
        gains = np.fromiter((max(get(document, 0), 0) for document in ranked), float, len(ranked))
        ranking = Ranking(gains, ideal)
        everything = max(len(gains), len(ideal))
        for name, (family, rank) in parsed.items():
            found[name][query] = measures[family](ranking, rank or everything)
    return found


def _dcg(gains: NDArray[np.float64]) -> float:
    return float((gains / _discounts(len(gains))).sum())


def _discounts(count: int) -> NDArray[np.float64]:
    global _known
    if len(_known) < count:
        _known = np.log2(np.arange(2, 2 * count + 2))
    return _known[:count]


_known: NDArray[np.float64] = np.log2(np.arange(2, 1002))
