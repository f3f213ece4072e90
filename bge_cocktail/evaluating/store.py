"""The folder that an evaluation is kept in: scores, answers, texts, embeddings for a map; and several read together."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import DataError, near_path
from bge_cocktail.core.outputs import json_line, json_of, new_folder, read_object, write_json
from bge_cocktail.core.runs import RUN_FILE, describe_run
from bge_cocktail.data.beir import RetrievalData
from bge_cocktail.evaluating.scores import ModelScores, Run, Score
from bge_cocktail.evaluating.tasks.task import Task, cut, tasks

SCORES_FILE = "scores.json"
PER_QUERY_FILE = "per_query.jsonl"
RUNS = "runs"


def write_evaluation(
    output: Path,
    make: Callable[[], list[ModelScores]],
    options: Mapping[str, Any],
    inputs: Mapping[str, str],
    task_list: Sequence[Task],
    also: Callable[[Path], None] = lambda _: None,
    *,
    overwrite: bool = False,
) -> list[ModelScores]:
    """Evaluate and keep the result.

    Writes scores.json, per_query.jsonl, run.json, what is kept for reading (`EvaluationDetails`), and runs/ where runs
    were kept.

    Args:
        output: The folder to write.
        make: Does the work.
        options: For run.json; ``evaluate`` holds those of judging.
        inputs: Names and hashes of models and tasks, for run.json.
        task_list: The tasks that were judged.
        also: Writes more into the folder.
        overwrite: Replace an older output of this tool.
    """
    started = time.monotonic()
    with new_folder(output, overwrite=overwrite) as new:
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
        judging = options["evaluate"]
        write_details(new, results, task_list, judging["split"], judging["map_texts"], judging["seed"])
        seconds = time.monotonic() - started
        about = {result.model: {**result.about, "retrieval": _efficiency(result)} for result in results}
        described = describe_run("evaluate", options=options, inputs=inputs, seconds=seconds, models=about)
        write_json(new / RUN_FILE, described)
    return results


def _efficiency(result: ModelScores) -> dict[str, dict[str, float]]:
    """Return what the search of each retrieval cost."""
    return {
        score.task: {name: round(value, 3) for name, value in score.efficiency.items()}
        for score in result.scores
        if score.efficiency
    }


def check_ids(task: Task, split: str) -> None:
    """Raise if an id of a retrieval can't stand in a TREC run, before anything is judged.

    Raises:
        DataError: It holds white space.
    """
    data = task.data(split)
    if isinstance(data, RetrievalData):
        for name in (*data.queries, *data.corpus):
            _check_id(name)


def _check_id(name: str) -> None:
    if not name or name.split() != [name]:
        raise DataError(f"the id {name!r} can't stand in a TREC run, whose columns end at white space")


def write_run(run: Run, path: Path) -> None:
    """Keep what was found for each query in TREC's format: query, Q0, document, rank, score, tag.

    Raises:
        DataError: An id holds white space, which the format has no way to say.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for query, ranked in run.items():
            for rank, (document, score) in enumerate(ranked.items(), start=1):
                _check_id(query)
                _check_id(document)
                file.write(f"{query} Q0 {document} {rank} {score:.9g} bge-cocktail\n")


def read_evaluation(folder: Path) -> list[ModelScores]:
    """Return the scores that `write_evaluation` kept.

    Raises:
        DataError: The folder holds none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder.{near_path(str(folder))}")
    if not (folder / SCORES_FILE).is_file() and (folder / RUN_FILE).is_file():
        command = read_object(folder / RUN_FILE).get("command")
        raise DataError(
            f"{folder} was made by bge-cocktail {command}; what can be compared is made by bge-cocktail evaluate"
        )
    try:
        content = json_of(folder / SCORES_FILE)
        _check_scores(content)
        values: dict[tuple[str, str, str], dict[str, float]] = {}
        with (folder / PER_QUERY_FILE).open(encoding="utf-8") as file:
            for line in map(json_line, file):
                if not all(map(_is_number, line["per_query"].values())):
                    raise TypeError(f"a value of {line['task']} that is no number")
                values[line["model"], line["task"], line["metric"]] = line["per_query"]
        return [
            ModelScores(
                model["model"],
                model["path"],
                [
                    Score(
                        **{**score, "interval": score["interval"] and tuple(score["interval"])},
                        per_query=values.get((model["model"], score["task"], score["metric"]), {}),
                    )
                    for score in model["scores"]
                ],
            )
            for model in content["models"]
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder} holds no readable evaluation: {error}") from None


def _check_scores(content: Any) -> None:
    """Raise TypeError where names are no texts or values no numbers, which would go wrong far from here."""
    if not content["models"]:
        raise ValueError("no model")
    for model in content["models"]:
        texts = [model["model"], model["path"]]
        for score in model["scores"]:
            texts += [score["task"], score["metric"], score["kind"], score["role"]]
            if not all(map(_is_number, [score["value"], *(score["interval"] or ())])):
                raise TypeError(f"a score that is no number: {score['value']!r:.60}")
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a name that is no text")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


ANSWERS_FILE, TEXTS_FILE, MAP_FILE = "answers.jsonl", "texts.jsonl", "embeddings.parquet"


@dataclass(frozen=True, slots=True)
class EvaluationDetails:
    """What an evaluation kept for reading.

    Attributes:
        answers: What each model said, by model and task, then by query or text.
        texts: Of each task, as `Task.texts` gives them.
        points: Of each model and task, the texts drawn for a map: their texts and groups, and their embeddings, shape
            (texts, dimensions).
    """

    answers: Mapping[tuple[str, str], Mapping[str, Any]]
    texts: Mapping[str, Mapping[str, Any]]
    points: Mapping[tuple[str, str], tuple[list[str], list[str], NDArray[np.float32]]]


def write_details(
    folder: Path, results: Sequence[ModelScores], task_list: Sequence[Task], split: str, map_texts: int, seed: int
) -> None:
    """Keep them beside the scores.

    Args:
        folder: The evaluation.
        results: Of all models.
        task_list: The tasks of ours; mteb's keep no texts.
        split: Which was judged.
        map_texts: As the models were evaluated with.
        seed: As above.
    """
    with (folder / ANSWERS_FILE).open("w", encoding="utf-8") as file:
        for result in results:
            for score in result.scores:
                if score.answers:
                    _write_line(file, {"model": result.model, "task": score.task, "answers": dict(score.answers)})
    with (folder / TEXTS_FILE).open("w", encoding="utf-8") as file:
        for task in task_list:
            answers = [score.answers for result in results for score in result.main() if score.task == task.name]
            _write_line(file, {"task": task.name, "kind": task.kind, **task.texts(split, answers)})
    _write_map(folder / MAP_FILE, results, task_list, split, map_texts, seed)


def read_details(folder: Path) -> EvaluationDetails:
    """Return what `write_details` kept; empty where an older version kept none.

    Raises:
        DataError: It can't be read.
    """
    try:
        return EvaluationDetails(
            {(line["model"], line["task"]): line["answers"] for line in _lines(folder / ANSWERS_FILE)},
            {line["task"]: line for line in _lines(folder / TEXTS_FILE)},
            _read_map(folder / MAP_FILE),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder} holds answers that can't be read: {error}") from None


def _write_map(
    path: Path, results: Sequence[ModelScores], task_list: Sequence[Task], split: str, count: int, seed: int
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    tables = []
    for task in task_list:
        sample = task.map_texts(split, count, seed)
        for result in results:
            embeddings = result.embeddings.get(task.name)
            if embeddings is None or not len(sample):
                continue
            rows = pa.array(embeddings.astype(np.float16).ravel(), pa.float16())
            columns: dict[str, Any] = {
                "model": [result.model] * len(sample),
                "task": [task.name] * len(sample),
                "role": [text.role for text in sample],
                "group": [text.group for text in sample],
                "text": [cut(text.text) for text in sample],
                # models of a run may have other dimensions: a list of any length
                "embedding": pa.FixedSizeListArray.from_arrays(rows, embeddings.shape[1]).cast(pa.list_(pa.float16())),
            }
            tables.append(pa.table(columns))
    if tables:
        parquet.write_table(pa.concat_tables(tables), path, compression="zstd")


def _read_map(path: Path) -> dict[tuple[str, str], tuple[list[str], list[str], NDArray[np.float32]]]:
    if not path.is_file():
        return {}
    from pyarrow import parquet

    maps: dict[tuple[str, str], tuple[list[str], list[str], list[Any]]] = {}
    table = parquet.read_table(path)
    columns = [table.column(name).to_pylist() for name in ("model", "task", "text", "group")]
    vectors = table.column("embedding").combine_chunks()
    flat, offsets = vectors.values.to_numpy(), vectors.offsets.to_numpy()
    for row, (model, task, text, group) in enumerate(zip(*columns, strict=True)):
        texts, groups, rows = maps.setdefault((model, task), ([], [], []))
        texts.append(text)
        groups.append(group)
        rows.append(flat[offsets[row] : offsets[row + 1]])
    return {key: (texts, groups, np.stack(rows).astype(np.float32)) for key, (texts, groups, rows) in maps.items()}


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [json_line(line) for line in file]


def _write_line(file: Any, value: Mapping[str, Any]) -> None:
    file.write(json.dumps(value, ensure_ascii=False) + "\n")


# what may differ between models that are compared: each has prompts of its own
_ENCODING = ("precision", "max_length", "query_prompt", "document_prompt")


# what changes no score
_ASIDE = ("confidence", "seed", "save_runs", "map_texts")


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What `write_evaluation` wrote, read once.

    Attributes:
        folder: Where.
        models: The scores.
        described: Its run.json.
    """

    folder: Path
    models: Sequence[ModelScores]
    described: Mapping[str, Any]

    @cached_property
    def details(self) -> EvaluationDetails:
        """What it kept for reading."""
        return read_details(self.folder)


def open_evaluation(folder: Path) -> Evaluation:
    """Read an evaluation.

    Raises:
        DataError: The folder holds none.
    """
    models = read_evaluation(folder)
    described = read_object(folder / RUN_FILE)
    if wrong := [name for name in ("inputs", "options", "models") if not isinstance(described.get(name, {}), dict)]:
        raise DataError(f"{folder / RUN_FILE}: '{wrong[0]}' is no object; was the file changed or damaged?")
    return Evaluation(folder, models, described)


def join_scores(evaluations: Sequence[Evaluation]) -> list[ModelScores]:
    """Return the models of several evaluations, each with all its scores.

    Raises:
        DataError: One was made with other options, or on other data of a task; two models have one name.
    """
    models: dict[str, tuple[str, ModelScores]] = {}
    data: dict[str, tuple[str, Path]] = {}
    options: tuple[dict[str, Any], Path] | None = None
    probe: tuple[str, Path] | None = None
    for evaluation in evaluations:
        folder, inputs = evaluation.folder, evaluation.described.get("inputs", {})
        depended = _what_scores_depend_on(evaluation.described.get("options", {}))
        chosen = str(depended.pop("probe", "that of an older version"))
        if any(
            score.kind in tasks and tasks[score.kind].learns for model in evaluation.models for score in model.scores
        ):
            probe = probe or (chosen, folder)
            if probe[0] != chosen:
                raise DataError(
                    f"{folder} was evaluated with other options than {probe[1]}: probe {chosen} against {probe[0]}"
                )
        options = options or (depended, folder)
        _refuse_other_options(depended, folder, *options)
        for name, value in inputs.items():
            role, _, task = name.partition(" ")
            if role not in ("target", "general"):
                continue
            known, where = data.setdefault(task, (value, folder))
            if known != value:
                raise DataError(f"task '{task}' has other data in {folder} than in {where}; evaluate on the same")
        for model in evaluation.models:
            content = inputs.get(model.model, "")
            earlier, before = models.setdefault(model.model, (content, model))
            if earlier != content:
                raise DataError(f"two models are called '{model.model}'; evaluate them as NAME=FOLDER")
            judged = {score.task for score in before.scores}
            scores = [*before.scores, *(score for score in model.scores if score.task not in judged)]
            models[model.model] = (content, replace(before, scores=scores))
    return [model for _, model in models.values()]


def _refuse_other_options(own: Mapping[str, Any], folder: Path, others: Mapping[str, Any], where: Path) -> None:
    """Raise where scores depend on options that differ; warn where models are only embedded otherwise."""
    changed = sorted(name for name in own.keys() | others.keys() if own.get(name) != others.get(name))
    words = ", ".join(f"{name} {own.get(name)} against {others.get(name)}" for name in changed)
    if set(changed) - set(_ENCODING):
        raise DataError(f"{folder} was evaluated with other options than {where}: {words}")
    if changed:
        log.warning("%s was embedded otherwise than %s: %s", folder, where, words)


def join_details(evaluations: Sequence[Evaluation]) -> EvaluationDetails:
    """Return what several evaluations kept for reading, which `join_scores` has found to be of the same data."""
    # as with scores, what an earlier one says holds
    details = [evaluation.details for evaluation in reversed(evaluations)]
    texts: dict[str, dict[str, Any]] = {}
    for each in details:
        for task, more in each.texts.items():
            known = texts.setdefault(task, {"asked": {}, "documents": {}})
            known["asked"] |= more.get("asked", {})
            known["documents"] |= more.get("documents", {})
    return EvaluationDetails(
        {key: value for each in details for key, value in each.answers.items()},
        texts,
        {key: value for each in details for key, value in each.points.items()},
    )


def _what_scores_depend_on(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of an evaluation's options, those that scores depend on."""
    judging, encoding = options.get("evaluate", {}), options.get("encode", {})
    return {
        **{name: value for name, value in judging.items() if name not in _ASIDE},
        **{name: encoding[name] for name in _ENCODING if name in encoding},
    }
