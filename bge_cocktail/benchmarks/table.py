"""mteb's result files of several models as one table, with the averages of its leaderboard."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_cocktail.errors import DataError, UsageError, nearest

log = logging.getLogger(__name__)
LOCAL = "Local"
META_FILE = "model_meta.json"


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Results of several models.

    Attributes:
        models: Their names, each with the start of its revision where a name comes twice.
        types: mteb's type of each task; ``Local`` for those that mteb doesn't know.
        scores: Main score by model, then by task.
        target: The tasks that are tuned for.
    """

    models: Sequence[str]
    types: Mapping[str, str]
    scores: Mapping[str, Mapping[str, float]]
    target: Collection[str] = ()

    @property
    def shared(self) -> list[str]:
        """The tasks that every model was judged on; averages are over these."""
        return [task for task in self.types if all(task in self.scores[model] for model in self.models)]

    def averages(self, model: str) -> dict[str, float | None]:
        """mteb's averages of a model: over tasks, over types, of each type; and of target and general tasks."""
        own, shared = self.scores[model], self.shared
        by_type = {
            kind: _mean([own[task] for task in shared if self.types[task] == kind])
            for kind in sorted(set(self.types.values()))
        }
        known = [value for value in by_type.values() if value is not None]
        found: dict[str, float | None] = {"mean (task)": _mean([own[task] for task in shared])}
        found["mean (type)"] = _mean(known)
        if self.target:
            found["target"] = _mean([own[task] for task in shared if task in self.target])
            found["general"] = _mean([own[task] for task in shared if task not in self.target])
        return {**found, **by_type}

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "tasks": dict(self.types),
            "shared": self.shared,
            "models": [
                {"model": model, "averages": self.averages(model), "scores": dict(self.scores[model])}
                for model in self.models
            ],
        }


def read_leaderboard(folders: Sequence[Path], target: Sequence[str] = ()) -> Leaderboard:
    """The results below folders.

    Args:
        folders: mteb's result folders, or evaluations that hold some (``mteb/``).
        target: Names of tasks that are tuned for.

    Raises:
        DataError: A folder holds no results, or a file can't be read.
        UsageError: No result is of a target task.
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for folder in folders:
        files = [path for path in sorted(folder.rglob("*.json")) if path.name != META_FILE and _is_result(path)]
        if not files:
            raise DataError(f"{folder} holds no results of mteb")
        for file in files:
            model = _model_of(file)
            task, score = _score_of(file)
            if found.setdefault(model, {}).setdefault(task, score) != score:
                log.warning(
                    "%s: another result of %s on %s stands in %s; the first holds", file, *model[:1], task, folder
                )
    tasks = list(dict.fromkeys(task for scores in found.values() for task in scores))
    for name in target:
        if name not in tasks:
            raise UsageError(f"--target: no result is of a task '{name}'.{nearest(name, tasks)}")
    names = _names(list(found))
    return Leaderboard(
        list(names.values()),
        _types(tasks),
        {names[model]: scores for model, scores in found.items()},
        frozenset(target),
    )


def _is_result(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}") from None
    return isinstance(content, dict) and {"task_name", "scores"} <= content.keys()


def _model_of(file: Path) -> tuple[str, str]:
    """Name and revision of the model that a result lies beside."""
    try:
        meta = json.loads((file.parent / META_FILE).read_text(encoding="utf-8"))
        return str(meta["name"]), str(meta.get("revision"))
    except (OSError, ValueError, KeyError, TypeError):
        return file.parent.parent.name.replace("__", "/"), file.parent.name


def _score_of(file: Path) -> tuple[str, float]:
    from mteb.results import TaskResult

    try:
        result = TaskResult.from_disk(file)
        return str(result.task_name), float(result.get_score())
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no result of mteb: {str(error).splitlines()[0]}") from None


def _types(tasks: Sequence[str]) -> dict[str, str]:
    import mteb

    known = {task.metadata.name: str(task.metadata.type) for task in mteb.get_tasks(exclude_superseded=False)}
    return {task: known.get(task, LOCAL) for task in tasks}


def _names(models: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """What to call each; models of one name are told apart by the revision, which is that of their weights."""
    names = [name for name, _ in models]
    return {model: model[0] if names.count(model[0]) == 1 else f"{model[0]} @ {model[1][:8]}" for model in models}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
