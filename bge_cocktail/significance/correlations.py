"""Paired tests of what is no mean over texts: a correlation with scores, an average precision over pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.tasks.pairs import average_precision, rank_correlations

Floats = NDArray[np.float64]
STATISTICS: Mapping[str, Callable[[Floats, Floats], Floats]] = {
    "Spearman": rank_correlations,
    "AP": average_precision,
}
# numbers held at once
_AT_ONCE = 1 << 21


def swap_test(
    before: Mapping[str, float],
    after: Mapping[str, float],
    wanted: Mapping[str, float],
    metric: str,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, tuple[float, float]]:
    """How often the metric differs as much if for each pair it is a coin's which model said what; and an interval.

    Similarities of two models lie in other ranges, so each one's ranks are swapped.

    Args:
        before: Similarity of each pair of texts under the first model.
        after: Under the second.
        wanted: Score of each pair.
        metric: ``Spearman`` or ``AP``.
        confidence: Of the interval.
        resamples: Draws of the test and of the bootstrap.
        seed: Of those.

    Returns:
        The two-sided p, and the bootstrap interval of second minus first.
    """
    from scipy.stats import rankdata

    of = STATISTICS[metric]
    ids = list(wanted)
    one, other = (rankdata([said[name] for name in ids]) for said in (before, after))
    scores = np.array([wanted[name] for name in ids], float)
    count = len(ids)
    observed = _difference(of, one[None], other[None], scores[None])[0]
    generator = np.random.default_rng(seed)
    block = max(1, _AT_ONCE // count)
    as_far = 1  # the observed one counts too, so that p is never 0
    drawn: list[Any] = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        swapped = generator.random((size, count)) < 0.5
        first, second = np.where(swapped, other, one), np.where(swapped, one, other)
        found = _difference(of, first, second, np.broadcast_to(scores, (size, count)))
        as_far += int((np.abs(found) >= abs(observed) - 1e-12).sum())
        rows = generator.integers(0, count, (size, count))
        drawn.append(_difference(of, one[rows], other[rows], scores[rows]))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    return as_far / (resamples + 1), (float(low), float(high))


def _difference(of: Callable[[Floats, Floats], Floats], one: Floats, other: Floats, wanted: Floats) -> Floats:
    return np.asarray(of(other, wanted) - of(one, wanted))
