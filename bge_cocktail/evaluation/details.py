"""What an evaluation keeps for reading: what each model said of each query, the texts, embeddings for a map."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.errors import DataError
from bge_cocktail.evaluation.judging import ModelScores
from bge_cocktail.tasks import Task, sample_texts, task_texts
from bge_cocktail.tasks.texts import cut

ANSWERS_FILE, TEXTS_FILE, MAP_FILE = "answers.jsonl", "texts.jsonl", "embeddings.parquet"


@dataclass(frozen=True, slots=True)
class Details:
    """What an evaluation kept for reading.

    Attributes:
        answers: What each model said, by model and task, then by query or text.
        texts: Of each task, as `tasks.task_texts` gives them.
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
            answers = [one.answers for result in results for one in result.main() if one.task == task.name]
            _write_line(file, {"task": task.name, "kind": task.kind, **task_texts(task, split, answers)})
    _write_map(folder / MAP_FILE, results, task_list, split, map_texts, seed)


def read_details(folder: Path) -> Details:
    """What `write_details` kept; empty where an older version kept none.

    Raises:
        DataError: It can't be read.
    """
    try:
        return Details(
            {(one["model"], one["task"]): one["answers"] for one in _lines(folder / ANSWERS_FILE)},
            {one["task"]: one for one in _lines(folder / TEXTS_FILE)},
            _read_map(folder / MAP_FILE),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} holds answers that can't be read: {error}") from None


def _write_map(
    path: Path, results: Sequence[ModelScores], task_list: Sequence[Task], split: str, count: int, seed: int
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    tables = []
    for task in task_list:
        sample = sample_texts(task, split, count, seed)
        for result in results:
            found = result.embeddings.get(task.name)
            if found is None or not len(sample):
                continue
            rows = pa.array(found.astype(np.float16).ravel(), pa.float16())
            columns: dict[str, Any] = {
                "model": [result.model] * len(sample),
                "task": [task.name] * len(sample),
                "role": [one.role for one in sample],
                "group": [one.group for one in sample],
                "text": [cut(one.text) for one in sample],
                # models of a run may have other dimensions: a list of any length
                "embedding": pa.FixedSizeListArray.from_arrays(rows, found.shape[1]).cast(pa.list_(pa.float16())),
            }
            tables.append(pa.table(columns))
    if tables:
        parquet.write_table(pa.concat_tables(tables), path, compression="zstd")


def _read_map(path: Path) -> dict[tuple[str, str], tuple[list[str], list[str], NDArray[np.float32]]]:
    if not path.is_file():
        return {}
    from pyarrow import parquet

    found: dict[tuple[str, str], tuple[list[str], list[str], list[Any]]] = {}
    table = parquet.read_table(path)
    columns = [table.column(name).to_pylist() for name in ("model", "task", "text", "group")]
    vectors = table.column("embedding").combine_chunks()
    flat, offsets = vectors.values.to_numpy(), vectors.offsets.to_numpy()
    for row, (model, task, text, group) in enumerate(zip(*columns, strict=True)):
        texts, groups, rows = found.setdefault((model, task), ([], [], []))
        texts.append(text)
        groups.append(group)
        rows.append(flat[offsets[row] : offsets[row + 1]])
    return {key: (texts, groups, np.stack(rows).astype(np.float32)) for key, (texts, groups, rows) in found.items()}


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _write_line(file: Any, value: Mapping[str, Any]) -> None:
    file.write(json.dumps(value, ensure_ascii=False) + "\n")
