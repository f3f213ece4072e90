"""Models judged on tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bge_cocktail.cache import Embeddings
from bge_cocktail.encoding import CachedEncoder, Encoder
from bge_cocktail.errors import UsageError
from bge_cocktail.options import Encoding, Evaluating
from bge_cocktail.provenance import hash_path
from bge_cocktail.tasks import Role, Score, Task, check_task, embed_sample, evaluate, open_task, sample_texts


@dataclass(frozen=True, slots=True)
class ModelScores:
    """The scores of one model.

    Attributes:
        model: What tables call it.
        path: Its folder or hub name.
        scores: All scores of all tasks.
        embeddings: Of the texts drawn for a map, by task; see `tasks.sample_texts`.
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


def open_tasks(target: Sequence[str | Path], general: Sequence[str | Path], others: bool = False) -> list[Task]:
    """Recognise the tasks, the target's first.

    Args:
        target: Folders of target tasks.
        general: Folders of general tasks.
        others: Whether there are other tasks beside these.

    Raises:
        UsageError: None, or two of the same name.
    """
    task_list = [open_task(path, "target") for path in target] + [open_task(path, "general") for path in general]
    if not task_list and not others:
        raise UsageError("nothing to evaluate on: name at least one target or general task, or one of mteb")
    names = [task.name for task in task_list]
    twice = next((name for row, name in enumerate(names) if name in names[:row]), None)
    if twice:
        raise UsageError(f"two tasks are called '{twice}'; tables and results need different folder names")
    return task_list


def evaluate_models(
    models: Mapping[str, str | Path], task_list: Sequence[Task], encoding: Encoding, options: Evaluating
) -> list[ModelScores]:
    """Judge several models on the same tasks.

    Args:
        models: What tables call each model, and its folder or hub name.
        task_list: From `open_tasks`.
        encoding: Prompts, precision, cache.
        options: Depth, split, intervals.
    """
    drawn = {task.name: sample_texts(task, options.split, options.map_texts, options.seed) for task in task_list}
    results = []
    for name, path in models.items():
        encoder = CachedEncoder(path, encoding)
        scores = evaluate(encoder, task_list, options)
        embeddings = {task: embed_sample(encoder, sample) for task, sample in drawn.items() if sample}
        results.append(ModelScores(name, str(path), scores, embeddings, _about(encoder)))
    return results


def scorer(
    target: Sequence[str | Path], general: Sequence[str | Path], options: Evaluating, general_split: str | None = None
) -> Callable[[Encoder], tuple[float, float | None]]:
    """A function that judges an encoder: mean main score on the target tasks, and on the general ones if there are any.

    Args:
        target: Folders of target tasks.
        general: Folders of general tasks.
        options: Depth, split.
        general_split: The split of the general tasks, if it is another one.

    Raises:
        UsageError: No target task, or two tasks of one name.
    """
    if not target:
        raise UsageError("a search needs at least one --target task")
    task_list = open_tasks(target, general)
    for_general = options.model_copy(update={"split": general_split or options.split})
    parts = [(task, for_general if task.role == "general" else options) for task in task_list]
    for task, judging in parts:
        check_task(task, judging.split)

    def score(encoder: Encoder) -> tuple[float, float | None]:
        scores = [score for task, judging in parts for score in evaluate(encoder, [task], judging)]
        result = ModelScores("", "", scores)
        return result.mean("target") or 0.0, result.mean("general")

    return score


def evaluation_inputs(
    models: Mapping[str, str | Path], task_list: Sequence[Task], options: Evaluating
) -> dict[str, str]:
    """Names and hashes of models (a reranker, too) and tasks."""
    from bge_cocktail.hub import model_folder

    inputs = {name: hash_path(model_folder(path)) for name, path in models.items()}
    if options.reranker is not None:
        inputs[f"reranker {options.reranker}"] = hash_path(model_folder(options.reranker))
    return {**inputs, **{f"{task.role} {task.name}": hash_path(task.path) for task in task_list}}


def _about(encoder: CachedEncoder) -> dict[str, Any]:
    return {
        "prompts": {"query": encoder.prompt_for("query"), "document": encoder.prompt_for("document")},
        "precision": encoder.precision,
        "texts_embedded": encoder.embedded,
        "texts_a_second": round(encoder.embedded / encoder.seconds, 1) if encoder.seconds else None,
    }
