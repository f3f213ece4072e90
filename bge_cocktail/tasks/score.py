"""A score, and the table of task kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bge_cocktail.encoding import Encoder
from bge_cocktail.options import Evaluating
from bge_cocktail.registry import Registry

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


Judge = Callable[[Encoder, Path, str, Role, Evaluating], list[Score]]
tasks = Registry[Judge]("tasks")
