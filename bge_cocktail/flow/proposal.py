"""What a run file says about data that somebody has: a folder is looked at, and what is seen is filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import DataError
from bge_cocktail.data.readers import kind_of
from bge_cocktail.data.sources import splits_of
from bge_cocktail.evaluating.tasks.task import Task, open_task
from bge_cocktail.options.presets import preset_run


def propose_run(
    data: Path | None = None, general: Sequence[Path] = (), base: str | None = None, preset: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return what a run file sets, by section, and what was seen, a line each.

    Args:
        data: A data set, a file of rows, or a folder of such.
        general: Tasks that must not get worse.
        base: The model to tune.
        preset: The name of options to begin with.

    Raises:
        DataError: There is no such folder, or nothing in it that can be tuned on.
    """
    values: dict[str, Any] = preset_run(preset) if preset else {}
    if base:
        values["base"] = base
    for folder in general:
        open_task(folder, "general")
    if data is None:
        return values | ({"data": {"general": _texts(general)}} if general else {}), []
    if not data.exists():
        raise DataError(f"{data}: no such file or folder")
    found, files = _data_sets(data)
    to_tune = next((task for task in found if task.kind == "retrieval" and "train" in splits_of(str(task.path))), None)
    others = [task.path for task in found if task is not to_tune and "test" in splits_of(str(task.path))]
    if to_tune is not None:
        seen = _seen(to_tune, values)
    elif files:
        values["prepare"] = {**values.get("prepare", {}), "sources": _texts(files)}
        values["data"] = {}
        seen = [f"{name}: rows, to be prepared first" for name in files]
    elif found == [] or found[0].path != data:
        raise DataError(f"{data}: nothing to tune on: no file of rows, and no folder with a train split")
    else:  # labelled texts or pairs: records are made of them
        values["prepare"] = {**values.get("prepare", {}), "sources": [str(data)]}
        values["data"] = {"target": [str(data)]}
        others = []
        seen = [f"{data}: {found[0].kind}, made into records first"]
    judged = [*others, *(folder for folder in general if folder not in others)]
    if judged:
        values["data"]["general"] = _texts(judged)
        seen += [f"{folder}: must not get worse" for folder in judged]
    return values, seen


def _seen(task: Task, values: dict[str, Any]) -> list[str]:
    """Fill in what a retrieval set with a train split is for, and say so."""
    splits = splits_of(str(task.path))
    values["data"] = {"train": str(task.path)}
    parts = ["train"]
    if "dev" in splits:
        values["data"]["dev"] = str(task.path)
        parts.append("dev")
    if "test" in splits:
        values["data"]["target"] = [str(task.path)]
        parts.append("target")
    return [f"{task.path}: {', '.join(parts)}"]


def _data_sets(path: Path) -> tuple[list[Task], list[Path]]:
    """Return the data sets that a path is or holds, and the files of rows that belong to none."""
    if path.is_file():
        return [], [path]
    try:
        return [open_task(path, "general")], []
    except DataError:
        pass
    found, files = [], []
    for inside in sorted(path.iterdir()):
        if inside.name.startswith("."):
            continue
        if inside.is_dir():
            try:
                found.append(open_task(inside, "general"))
            except DataError:
                continue
        elif kind_of(inside):
            files.append(inside)
    return found, files


def _texts(paths: Sequence[Path]) -> list[str]:
    return [str(path) for path in paths]
