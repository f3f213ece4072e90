"""The merges that a search tried: target against general score, and the front that none of them beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bge_cocktail.report.tradeoff import BLUE, INK, MUTED, ORANGE, finish


def draw_front(
    trials: Sequence[Mapping[str, Any]], chosen: Sequence[float], path: Path, *, target: str, general: str
) -> None:
    """Draw the picture as a PNG.

    Args:
        trials: ``weights``, ``target``, ``general`` and ``on_front`` of each merge; the base is the first.
        chosen: The weights that were kept.
        path: The file to write.
        target: Names of the target tasks.
        general: Names of the general tasks.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    front = sorted((trial["target"], trial["general"]) for trial in trials if trial.get("on_front"))
    axes.axhline(
        trials[0]["general"],
        color=MUTED,
        linewidth=1,
        linestyle=(0, (4, 4)),
        zorder=1,
        label="general score of the base",
    )
    axes.plot(*zip(*front, strict=True), color=BLUE, linewidth=2, marker="o", markersize=3, zorder=2, label="front")
    rest = [(trial["target"], trial["general"]) for trial in trials if not trial.get("on_front")]
    if rest:
        axes.scatter(*zip(*rest, strict=True), s=26, color=MUTED, zorder=3, label="tried")
    axes.scatter(*zip(*front, strict=True), s=34, color="white", edgecolors=BLUE, linewidths=1.6, zorder=4)
    kept = next(trial for trial in trials if list(trial["weights"]) == list(chosen))
    axes.scatter([kept["target"]], [kept["general"]], s=90, color=ORANGE, zorder=5, label="chosen")
    name = _shown(chosen) if kept is not trials[0] else f"base, {_shown(chosen)}"
    for label, trial, side in (("base" if kept is not trials[0] else "", trials[0], -14), (name, kept, 10)):
        axes.annotate(
            label,
            (trial["target"], trial["general"]),
            xytext=(0, side),
            textcoords="offset points",
            ha="center",
            color=ORANGE if trial is kept else INK,
            fontsize=9,
            zorder=6,
        )
    axes.margins(0.12)
    axes.legend(frameon=False, fontsize=8)
    labels = {"target": f"target: {target}", "general": f"general: {general}"}
    finish(figure, axes, path, **labels, title="Merges that were tried")


def _shown(weights: Sequence[float]) -> str:
    return "weights " + ", ".join(f"{weight:.2f}" for weight in weights)
