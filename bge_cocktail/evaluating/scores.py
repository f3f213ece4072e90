"""A score, the scores of a model, and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.models.cache import Embeddings

Role = Literal["target", "general"]
Run = Mapping[str, Mapping[str, float]]
"""The documents found for each query, best first, with their scores."""
# documents of a query that are kept for reading
FOUND_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one task.

    Attributes:
        task: Name of the task.
        kind: ``retrieval``, ``classification``, ...
        role: Whether the task is tuned for, or must not get worse.
        metric: Such as ``nDCG@10``.
        value: Mean over the queries, or over the test set.
        interval: Bootstrap interval of the value; None where mteb gave only the value.
        count: Queries or texts judged.
        main: Whether it is the metric that tables show.
        per_query: Value of each query or text by id; empty where the metric has none (macro-F1).
        run: The documents found for each query with their similarities, best first, beside the main metric of a
            retrieval.
        answers: What the model said of each query or text, by id, beside the main metric: the label, the similarity of
            a pair, or for a query the first documents ``found`` with their similarities and the ``ranks`` of the
            relevant ones (None where they aren't found).
        efficiency: Of a retrieval's search, beside the main metric: ``documents``, ``index_megabytes`` and the wall
            time of a query, ``search_ms``.
    """

    task: str
    kind: str
    role: Role
    metric: str
    value: float
    interval: tuple[float, float] | None
    count: int
    main: bool = False
    per_query: Mapping[str, float] = field(default_factory=dict, repr=False)
    run: Run = field(default_factory=dict, repr=False, compare=False)
    answers: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    efficiency: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)

    def to_json(self, *, per_query: bool = False) -> dict[str, Any]:
        """As a JSON object, the values of single queries only if asked."""
        names = ("task", "kind", "role", "metric", "value", "interval", "count", "main")
        value = {name: getattr(self, name) for name in names}
        return {**value, "per_query": dict(self.per_query)} if per_query else value


@dataclass(frozen=True, slots=True)
class ModelScores:
    """The scores of one model.

    Attributes:
        model: What tables call it.
        path: Its folder or hub name.
        scores: All scores of all tasks.
        embeddings: Of the texts drawn for a map, by task; see `Task.map_texts`.
        about: The prompts and the precision it was judged with, and how many texts were embedded a second (None where
            all came from the cache).
    """

    model: str
    path: str
    scores: Sequence[Score]
    embeddings: Mapping[str, Embeddings] = field(default_factory=dict, repr=False, compare=False)
    about: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def main(self) -> list[Score]:
        """Return the main score of each task."""
        return [score for score in self.scores if score.main]

    def mean(self, role: Role) -> float | None:
        """Mean of the main scores of the tasks of a role; None without such tasks."""
        values = [score.value for score in self.main() if score.role == role]
        return sum(values) / len(values) if values else None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, without the values of single queries."""
        return {
            "model": self.model,
            "path": self.path,
            "target": self.mean("target"),
            "general": self.mean("general"),
            "scores": [score.to_json() for score in self.scores],
        }


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
