"""Intervals over per-query values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def bootstrap_interval(
    values: Array,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 13,
    statistic: Callable[[Array], Array] | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979).

    Args:
        values: One row per query (or text), shape (queries,) or (queries, columns).
        confidence: Share of the resamples between the two ends.
        resamples: How many resamples are drawn.
        seed: Seeds the draws.
        statistic: Maps resampled values, shape (resamples, queries, ...), to one number a resample; the mean
            without it.

    Returns:
        Lower and upper end.
    """
    count = len(values)
    if count == 0:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    # in blocks, so that memory stays at a few MB however many values there are
    block = max(1, 2_000_000 // count)
    results: list[Array] = []
    for start in range(0, resamples, block):
        rows = generator.integers(0, count, size=(min(block, resamples - start), count))
        drawn = values[rows]
        results.append(drawn.mean(axis=1) if statistic is None else statistic(drawn))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(results), [tail, 1 - tail])
    return float(low), float(high)
