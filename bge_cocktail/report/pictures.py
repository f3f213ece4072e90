"""The gist of a report as one picture: what changed on every task, target against general."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import UsageError
from bge_cocktail.core.pictures import INK, MUTED, Label, place_labels, save
from bge_cocktail.report.blocks import colour_of
from bge_cocktail.report.collect import ComparedEvaluations, ReportInput


def draw_summary(collected: ReportInput, path: Path, kind: str) -> None:
    """Draw for each group of evaluations what changed on every task, and target against general.

    Args:
        collected: The runs.
        path: The file to write.
        kind: ``png`` or ``pdf``.

    Raises:
        UsageError: There is no evaluation.
    """
    from matplotlib.figure import Figure

    if not collected.evaluated:
        raise UsageError("there is no evaluation to draw; a picture shows scores")
    tasks = [len(group.baseline.main()) for group in collected.evaluated]
    heights = [
        1.4 + 0.24 * count * max(1, len(group.changes)) for count, group in zip(tasks, collected.evaluated, strict=True)
    ]
    figure = Figure(figsize=(11, max(3.6, sum(heights))), dpi=150, layout="constrained")
    rows = figure.subplots(len(collected.evaluated), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    for (left, right), group in zip(rows, collected.evaluated, strict=True):
        (_draw_changes if group.changes else _draw_scores)(left, group)
        _draw_trade(right, group)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_axisbelow(True)
            axes.grid(color="#e6e9ed", linewidth=0.8)
    save(figure, path, kind)


def _draw_changes(axes: Any, group: ComparedEvaluations) -> None:
    tasks = list(dict.fromkeys(change.task for changes in group.changes.values() for change in changes))
    step = 0.8 / len(group.changes)
    places = {model.model: place for place, model in enumerate(group.models)}
    lines = []
    for place, (model, changes) in enumerate(group.changes.items()):
        where = [tasks.index(change.task) - 0.4 + step * (place + 0.5) for change in changes]
        values = [100 * change.difference for change in changes]
        below = [max(0.0, value - 100 * one.interval[0]) for value, one in zip(values, changes, strict=True)]
        above = [max(0.0, 100 * one.interval[1] - value) for value, one in zip(values, changes, strict=True)]
        colour = colour_of(places[model])
        lines.append(axes.errorbar(values, where, xerr=[below, above], fmt="o", color=colour, markersize=5))
    axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 4)))
    axes.set_yticks(range(len(tasks)), [_shown(task) for task in tasks])
    axes.invert_yaxis()
    axes.set_xlabel("points")
    # labels by hand: matplotlib leaves those out that begin with a line
    axes.legend(lines, [_shown(model) for model in group.changes], frameon=False, fontsize=8)
    axes.set_title(
        f"Change against {_shown(group.baseline.model)}", loc="left", fontsize=11, color=INK, fontweight="bold"
    )


def _draw_scores(axes: Any, group: ComparedEvaluations) -> None:
    scores = group.baseline.main()
    ends = [score.interval or (score.value, score.value) for score in scores]
    errors = [
        [max(0.0, score.value - low) for score, (low, _) in zip(scores, ends, strict=True)],
        [max(0.0, high - score.value) for score, (_, high) in zip(scores, ends, strict=True)],
    ]
    axes.barh(
        [_shown(score.task) for score in scores], [score.value for score in scores], xerr=errors, color=colour_of(1)
    )
    axes.invert_yaxis()
    axes.set_title(f"Scores of {_shown(group.baseline.model)}", loc="left", fontsize=11, color=INK, fontweight="bold")


def _draw_trade(axes: Any, group: ComparedEvaluations) -> None:
    labels = []
    for place, model in enumerate(group.models):
        target, general = group.mean(model, "target"), group.mean(model, "general")
        if target is None or general is None:
            continue
        axes.scatter([target], [general], s=70, color=colour_of(place), zorder=3)
        labels.append(Label(_shown(model.model), target, general, {"fontsize": 8}))
    if not labels:
        axes.set_axis_off()
        return
    axes.margins(0.2)
    place_labels(axes, labels)
    axes.set_xlabel("target  →  better")
    axes.set_ylabel("general  →  better")
    axes.set_title("Target and general", loc="left", fontsize=11, color=INK, fontweight="bold")


def _shown(name: str) -> str:
    """Return a name that matplotlib takes for no formula."""
    return name.replace("$", r"\$")
