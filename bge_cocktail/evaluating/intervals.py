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
        statistic: Maps resampled values, shape (resamples, queries, ...), to one number a resample, NaN for those
            that say nothing and are left out; the mean without it.

    Returns:
        Lower and upper end.
    """
    count = len(values)
    if count == 0:
        return float("nan"), float("nan")
    if statistic is None:
        return mean_intervals(values[:, None], confidence=confidence, resamples=resamples, seed=seed)[0]
    generator = np.random.default_rng(seed)
    # in blocks, so that memory stays at a few MB however many values there are
    block = max(1, 2_000_000 // count)
    results: list[Array] = []
    for start in range(0, resamples, block):
        rows = generator.integers(0, count, size=(min(block, resamples - start), count))
        results.append(statistic(values[rows]))
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(np.concatenate(results), [tail, 1 - tail])
    return float(low), float(high)


def mean_intervals(
    values: Array, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 13
) -> list[tuple[float, float]]:
    """Percentile bootstrap intervals of several means over the same queries, each resample drawn once for all.

    Args:
        values: Shape (queries, means).
        confidence: Share of the resamples between the two ends.
        resamples: How many resamples are drawn.
        seed: Seeds the draws.

    Returns:
        Lower and upper end of each mean.
    """
    count, means = values.shape
    if count == 0:
        return [(float("nan"), float("nan"))] * means
    generator = np.random.default_rng(seed)
    block = max(1, 2_000_000 // count)
    results: list[Array] = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        # how often each query is in each resample: what a mean needs to know of it
        rows = generator.integers(0, count, size=(size, count), dtype=np.int32)
        rows += count * np.arange(size, dtype=np.int32)[:, None]
        times = np.bincount(rows.ravel(), minlength=size * count).reshape(size, count)
        results.append(times @ values / count)
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(results), [tail, 1 - tail], axis=0)
    return [(float(one), float(other)) for one, other in zip(low, high, strict=True)]
