"""Several models on the same tasks: the scores, and the folder that they are kept in."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bge_cocktail.encoding import CachedEncoder, Encoder
from bge_cocktail.errors import DataError, UsageError
from bge_cocktail.layout import read_object
from bge_cocktail.options import Encoding, Evaluating
from bge_cocktail.provenance import RUN_FILE, describe_run, hash_path, new_folder, write_json
from bge_cocktail.tasks import Role, Run, Score, Task, check_task, evaluate, open_task

SCORES_FILE = "scores.json"
PER_QUERY_FILE = "per_query.jsonl"
RUNS = "runs"
# what may differ between models that are compared: each has prompts of its own
_ENCODING = ("precision", "max_length", "query_prompt", "document_prompt")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelScores:
    """The scores of one model.

    Attributes:
        model: What tables call it.
        path: Its folder or hub name.
        scores: All scores of all tasks.
    """

    model: str
    path: str
    scores: Sequence[Score]

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


def open_tasks(target: Sequence[Path], general: Sequence[Path], others: bool = False) -> list[Task]:
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
    return [
        ModelScores(name, str(path), evaluate(CachedEncoder(path, encoding), task_list, options))
        for name, path in models.items()
    ]


def scorer(
    target: Sequence[Path], general: Sequence[Path], options: Evaluating, general_split: str | None = None
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


def write_evaluation(
    output: Path,
    make: Callable[[], list[ModelScores]],
    options: Mapping[str, Any],
    inputs: Mapping[str, str],
    also: Callable[[Path], None] = lambda _: None,
) -> list[ModelScores]:
    """Evaluate and keep the result: scores.json, per_query.jsonl and run.json, and runs/ where runs were kept.

    Args:
        output: The folder to write; an older one of this tool is replaced.
        make: Does the work.
        options: For run.json.
        inputs: Names and hashes of models and tasks, for run.json.
        also: Writes more into the folder.
    """
    started = time.monotonic()
    with new_folder(output, overwrite=True) as new:
        results = make()
        also(new)
        write_json(new / SCORES_FILE, {"models": [result.to_json() for result in results]})
        with (new / PER_QUERY_FILE).open("w", encoding="utf-8") as file:
            for result in results:
                for score in result.scores:
                    if score.per_query:
                        line = {"model": result.model, **score.to_json(per_query=True)}
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    if score.run:
                        write_run(score.run, new / RUNS / result.model.replace("/", "_") / f"{score.task}.trec")
        seconds = time.monotonic() - started
        write_json(new / RUN_FILE, describe_run("evaluate", options=options, inputs=inputs, seconds=seconds))
    return results


def write_run(run: Run, path: Path) -> None:
    """Keep what was found for each query in TREC's format: query, Q0, document, rank, score, tag.

    Raises:
        DataError: An id holds white space, which the format has no way to say.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for query, found in run.items():
            for rank, (document, score) in enumerate(found.items(), start=1):
                for name in (query, document):
                    if not name or name.split() != [name]:
                        raise DataError(f"the id {name!r} can't stand in a TREC run, whose columns end at white space")
                file.write(f"{query} Q0 {document} {rank} {score:.9g} bge-cocktail\n")


def read_evaluation(folder: Path) -> list[ModelScores]:
    """The scores that `write_evaluation` kept.

    Raises:
        DataError: The folder holds none.
    """
    try:
        content = json.loads((folder / SCORES_FILE).read_text(encoding="utf-8"))
        values: dict[tuple[str, str, str], dict[str, float]] = {}
        with (folder / PER_QUERY_FILE).open(encoding="utf-8") as file:
            for line in map(json.loads, file):
                values[line["model"], line["task"], line["metric"]] = line["per_query"]
        return [
            ModelScores(
                one["model"],
                one["path"],
                [
                    Score(
                        **{**score, "interval": score["interval"] and tuple(score["interval"])},
                        per_query=values.get((one["model"], score["task"], score["metric"]), {}),
                    )
                    for score in one["scores"]
                ],
            )
            for one in content["models"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} holds no readable evaluation: {error}") from None


def gather_evaluations(folders: Sequence[Path]) -> list[ModelScores]:
    """The models of several evaluations, each with all its scores.

    Raises:
        DataError: A folder holds no evaluation; one was made with other options, or on other data of a task; two models
            have one name.
    """
    models: dict[str, tuple[str, ModelScores]] = {}
    data: dict[str, tuple[str, Path]] = {}
    options: tuple[dict[str, Any], Path] | None = None
    for folder in folders:
        found = read_evaluation(folder)
        described = read_object(folder / RUN_FILE)
        inputs = described.get("inputs", {})
        mine = _what_scores_depend_on(described.get("options", {}))
        options = options or (mine, folder)
        changed = [name for name in mine.keys() | options[0].keys() if mine.get(name) != options[0].get(name)]
        words = ", ".join(f"{name} {mine.get(name)} against {options[0].get(name)}" for name in sorted(changed))
        if set(changed) - set(_ENCODING):
            raise DataError(f"{folder} was evaluated with other options than {options[1]}: {words}")
        if changed:
            log.warning("%s was embedded otherwise than %s: %s", folder, options[1], words)
        for name, value in inputs.items():
            role, _, task = name.partition(" ")
            if role not in ("target", "general"):
                continue
            known, where = data.setdefault(task, (value, folder))
            if known != value:
                raise DataError(f"task '{task}' has other data in {folder} than in {where}; evaluate on the same")
        for one in found:
            content = inputs.get(one.model, "")
            if one.model not in models:
                models[one.model] = (content, one)
                continue
            earlier, before = models[one.model]
            if earlier != content:
                raise DataError(f"two models are called '{one.model}'; evaluate them as NAME=FOLDER")
            seen = {score.task for score in before.scores}
            scores = [*before.scores, *(score for score in one.scores if score.task not in seen)]
            models[one.model] = (content, replace(before, scores=scores))
    return [one for _, one in models.values()]


def _what_scores_depend_on(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of an evaluation's options, those that scores depend on."""
    judging, encoding = options.get("evaluate", {}), options.get("encode", {})
    return {
        **{name: value for name, value in judging.items() if name not in ("confidence", "seed", "save_runs")},
        **{name: encoding[name] for name in _ENCODING if name in encoding},
    }


def evaluation_inputs(
    models: Mapping[str, str | Path], task_list: Sequence[Task], options: Evaluating
) -> dict[str, str]:
    """Names and hashes of models (a reranker, too) and tasks."""
    from bge_cocktail.hub import model_folder

    inputs = {name: hash_path(model_folder(path)) for name, path in models.items()}
    if options.reranker is not None:
        inputs[f"reranker {options.reranker}"] = hash_path(model_folder(options.reranker))
    return {**inputs, **{f"{task.role} {task.name}": hash_path(task.path) for task in task_list}}
