"""The trade-off: target and general scores as the share of the tuned model goes from 0 to 1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from bge_cocktail.evaluation import evaluate_models
from bge_cocktail.merging import merge
from bge_cocktail.options import Merging, RunFile
from bge_cocktail.outputs import write_json
from bge_cocktail.progress import progress
from bge_cocktail.report import draw_tradeoff
from bge_cocktail.tasks import Task

TRADEOFF_FILE = "tradeoff.json"
PICTURE_FILE = "tradeoff.png"
# a tuned model may declare prompts, or a length, that its base doesn't
AS_TUNED = Merging(prompts_from=1, length_from=1)
Point = tuple[float, float, float]
"""Share of the tuned model, mean target score, mean general score."""


def measure_tradeoff(
    options: RunFile,
    task_list: Sequence[Task],
    shares: Sequence[float],
    base: Path,
    tuned: Path,
    cocktail: Path,
    folder: Path,
) -> list[Point]:
    """Merge at each share, judge, and draw.

    Args:
        options: Of the run.
        task_list: Target and general tasks.
        shares: In rising order, from 0 to 1.
        base: The base.
        tuned: The tuned model.
        cocktail: Their merge at the run's own share, which is there already.
        folder: Where numbers and picture are written.

    Returns:
        A point for each share.
    """
    there = {options.merge.share: cocktail, 0.0: base, 1.0: tuned}
    scratch = folder / "model"
    points: list[Point] = []
    with progress("trade-off", len(shares)) as advance:
        for share in shares:
            model, encode = there.get(share, scratch), options.encode
            if model == scratch:
                merge([tuned, base], scratch, AS_TUNED.model_copy(update={"share": share}), overwrite=True)
                # a model that is thrown away leaves nothing in the user's cache
                encode = encode.model_copy(update={"cache": False})
            judging = options.evaluate.model_copy(update={"map_texts": 0})
            result = evaluate_models({"": model}, task_list, encode, judging)[0]
            points.append((share, result.mean("target") or 0.0, result.mean("general") or 0.0))
            advance(1)
    shutil.rmtree(scratch, ignore_errors=True)
    write_json(folder / TRADEOFF_FILE, {"columns": ["share", "target", "general"], "points": points})
    draw_tradeoff(
        points,
        folder / PICTURE_FILE,
        chosen=options.merge.share,
        target=_axis(task_list, "target"),
        general=_axis(task_list, "general"),
        title="Target and general score by share of the tuned model",
    )
    return points


def read_tradeoff(folder: Path) -> list[Point]:
    """The points that `measure_tradeoff` wrote."""
    points: list[Point] = [
        (share, target, general)
        for share, target, general in json.loads((folder / TRADEOFF_FILE).read_text())["points"]
    ]
    return points


def _axis(task_list: Sequence[Task], role: str) -> str:
    names = [task.name for task in task_list if task.role == role]
    return f"{role}: {names[0]}" if len(names) == 1 else f"{role}: mean of {', '.join(names)}"
