"""A score, and the scores of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

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
        """The main score of each task."""
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
