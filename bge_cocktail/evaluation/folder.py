"""The folder that an evaluation is kept in."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bge_cocktail.errors import DataError, near_path
from bge_cocktail.evaluation.details import write_details
from bge_cocktail.evaluation.judging import ModelScores
from bge_cocktail.outputs import new_folder, write_json
from bge_cocktail.provenance import RUN_FILE, describe_run
from bge_cocktail.tasks import Run, Score, Task

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
    """Evaluate and keep the result: scores.json, per_query.jsonl, run.json, what is kept for reading (`Details`), and
    runs/ where runs were kept.

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
        about = {one.model: {**one.about, "retrieval": _efficiency(one)} for one in results}
        described = describe_run("evaluate", options=options, inputs=inputs, seconds=seconds, models=about)
        write_json(new / RUN_FILE, described)
    return results


def _efficiency(result: ModelScores) -> dict[str, dict[str, float]]:
    """What the search of each retrieval cost."""
    return {
        score.task: {name: round(value, 3) for name, value in score.efficiency.items()}
        for score in result.scores
        if score.efficiency
    }


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
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder.{near_path(str(folder))}")
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
