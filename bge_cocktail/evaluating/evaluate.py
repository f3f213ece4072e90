"""Models judged on tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import UsageError
from bge_cocktail.core.registry import refuse_unknown_options
from bge_cocktail.core.runs import hash_path
from bge_cocktail.evaluating.measures import parse_measure
from bge_cocktail.evaluating.scores import ModelScores, Role, Score
from bge_cocktail.evaluating.tasks.task import Task, embed_sample, open_task, tasks
from bge_cocktail.models.encoder import CachedEncoder, Encoder
from bge_cocktail.options import EncodeOptions, EvaluateOptions


def evaluate(encoder: Encoder, task_list: Sequence[Task], options: EvaluateOptions | None = None) -> list[Score]:
    """Judge an encoder on tasks.

    Args:
        encoder: Embeds queries, documents and texts.
        task_list: From `open_task`.
        options: Depth, split, intervals.

    Returns:
        The scores of each task, its main metric first.
    """
    options = options or EvaluateOptions()
    for name in options.metrics:
        parse_measure(name)  # a wrong name is said before anything is embedded
    judges = [tasks[task.kind].judge for task in task_list]
    refuse_unknown_options(judges, (), options.plugin_options)
    return [score for task in task_list for score in task.judge(encoder, options)]


TaskPath = str | Path | Task
"""A task's folder, or the task, opened already."""


def open_tasks(target: Sequence[TaskPath], general: Sequence[TaskPath], others: bool = False) -> list[Task]:
    """Recognise the tasks, the target's first.

    Args:
        target: Folders of target tasks.
        general: Folders of general tasks.
        others: Whether there are other tasks beside these.

    Raises:
        UsageError: None, or two of the same name.
    """
    given: list[tuple[TaskPath, Role]] = [
        *((path, "target") for path in target),
        *((path, "general") for path in general),
    ]
    task_list = [path if isinstance(path, Task) else open_task(path, role) for path, role in given]
    if not task_list and not others:
        raise UsageError("nothing to evaluate on: name at least one target or general task, or one of mteb")
    names = [task.name for task in task_list]
    twice = next((name for row, name in enumerate(names) if name in names[:row]), None)
    if twice:
        raise UsageError(f"two tasks are called '{twice}'; tables and results need different folder names")
    return task_list


def evaluate_models(
    models: Mapping[str, str | Path], task_list: Sequence[Task], encoding: EncodeOptions, options: EvaluateOptions
) -> list[ModelScores]:
    """Judge several models on the same tasks.

    Args:
        models: What tables call each model, and its folder or hub name.
        task_list: From `open_tasks`.
        encoding: Prompts, precision, cache.
        options: Depth, split, intervals.
    """
    drawn = {task.name: task.map_texts(options.split, options.map_texts, options.seed) for task in task_list}
    results = []
    for name, path in models.items():
        encoder = CachedEncoder(path, encoding)
        scores = evaluate(encoder, task_list, options)
        embeddings = {task: embed_sample(encoder, sample) for task, sample in drawn.items() if sample}
        results.append(ModelScores(name, str(path), scores, embeddings, _about(encoder)))
    return results


def scorer(
    target: Sequence[TaskPath],
    general: Sequence[TaskPath],
    options: EvaluateOptions,
    general_split: str | None = None,
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
        task.data(judging.split)  # what is wrong is said now

    def score(encoder: Encoder) -> tuple[float, float | None]:
        scores = [score for task, judging in parts for score in evaluate(encoder, [task], judging)]
        result = ModelScores("", "", scores)
        return result.mean("target") or 0.0, result.mean("general")

    return score


def evaluation_inputs(
    models: Mapping[str, str | Path], task_list: Sequence[Task], options: EvaluateOptions
) -> dict[str, str]:
    """Names and hashes of models (a reranker, too) and tasks."""
    from bge_cocktail.models.folder import model_folder

    inputs = {name: hash_path(model_folder(path)) for name, path in models.items()}
    if options.reranker is not None:
        inputs[f"reranker {options.reranker}"] = hash_path(model_folder(options.reranker))
    return {**inputs, **{f"{task.role} {task.name}": task.hash for task in task_list}}


def _about(encoder: CachedEncoder) -> dict[str, Any]:
    return {
        "prompts": {"query": encoder.prompts.query, "document": encoder.prompts.document},
        "precision": encoder.precision,
        "texts_embedded": encoder.embedded,
        "texts_a_second": round(encoder.embedded / encoder.seconds, 1) if encoder.seconds else None,
    }
