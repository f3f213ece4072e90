"""The curves of a training: losses, learning rate, and what was watched."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bge_cocktail.errors import CocktailError
from bge_cocktail.training.watching import PRIMARY

log = logging.getLogger(__name__)
CURVES_FILE = "curves.jsonl"
PICTURE_FILE = "curves.png"


def history(state: Any, primary: str | None) -> dict[str, Any]:
    """What a trainer's state tells of a training: steps, the best of them, the curves.

    Args:
        state: Of the trainer.
        primary: The metric that the best step goes by, such as `PRIMARY`; None without one.

    Raises:
        CocktailError: A loss was no number.
    """
    curves = [_curve_point(entry) for entry in state.log_history if "train_runtime" not in entry]
    losses = [point["loss"] for point in curves if "loss" in point]
    if not losses or not all(math.isfinite(loss) for loss in losses):
        raise CocktailError("the loss became NaN or infinite; a lower learning rate or fp32 may help")
    developed = [point[primary] for point in curves if primary in point]
    if developed and state.best_metric is not None and state.best_metric <= developed[0]:
        log.warning(
            "tuning did not raise %s (base %.4f, best %.4f): try another learning rate%s",
            str(primary).replace("_", " ", 1),
            developed[0],
            state.best_metric,
            ", temperature or negatives" if primary == PRIMARY else "",
        )
    return {
        "steps": state.global_step,
        "best_step": state.best_global_step if developed else state.global_step,
        "dev_before": developed[0] if developed else None,
        "dev_best": state.best_metric if developed else None,
        "general": _before_and_after(curves, state.best_global_step if developed else state.global_step),
        "final_loss": losses[-1],
        "curves": curves,
    }


# times, and what the point has under other names
_LEFT_AWAY = (
    "step",
    "epoch",
    "grad_norm",
    "total_flos",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
)


def _curve_point(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the curves: step, epoch, and the losses and learning rate, or what was watched."""
    # in an order of their own: a checkpoint has sorted those before it
    values = {name.removeprefix("eval_"): value for name, value in sorted(entry.items()) if name not in _LEFT_AWAY}
    return {"step": entry["step"], "epoch": round(entry.get("epoch", 0), 4), **values}


def _before_and_after(curves: Sequence[Mapping[str, Any]], step: int) -> dict[str, tuple[float, float]]:
    """The scores of each general task before training, and those of the weights that are kept."""
    found: dict[str, tuple[float, float]] = {}
    for point in curves:
        for name in (name for name in point if name.startswith("general_")):
            first = found.get(name.removeprefix("general_"), (point[name], 0.0))[0]
            if point["step"] <= step:
                found[name.removeprefix("general_")] = (first, point[name])
    return found


def write_curves(curves: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write the points as JSON Lines, and a picture: losses above, below it what was watched."""
    (folder / CURVES_FILE).write_text("".join(json.dumps(point) + "\n" for point in curves))
    _draw(curves, folder / PICTURE_FILE)


def _draw(curves: Sequence[Mapping[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    watched = [name for name in dict.fromkeys(name for point in curves for name in point) if _is_watched(name)]
    figure = Figure(figsize=(7.2, 5.2 if watched else 2.8), dpi=120, layout="constrained")
    panels = [("loss", [name for name in ("loss", "dev_loss") if any(name in point for point in curves)])]
    if watched:
        panels.append(("score", watched))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (label, names) in zip(axes, panels, strict=True):
        for name in names:
            points = [(point["step"], point[name]) for point in curves if name in point]
            sparse = {"marker": "o", "markersize": 3.5} if len(points) < 60 else {}
            panel.plot(*zip(*points, strict=True), label=name.replace("_", " ", 1), linewidth=1.4, **sparse)
        panel.set_ylabel(label)
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("step")
    figure.savefig(path)


def _is_watched(name: str) -> bool:
    return name.startswith(("dev_", "general_")) and name != "dev_loss"
