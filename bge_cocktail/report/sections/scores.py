"""What models score: the main table, dots with intervals, target against general."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bge_cocktail.core.outputs import json_of
from bge_cocktail.evaluating.compare import TaskChange
from bge_cocktail.evaluating.scores import ModelScores, Score
from bge_cocktail.report.blocks import (
    MUTED,
    Block,
    Cell,
    Plot,
    Section,
    Table,
    Tone,
    Words,
    colour_of,
    figure,
    plain,
    report_sections,
)
from bge_cocktail.report.collect import ComparedEvaluations, ReportInput, Step

# names of points that lie near each other go to other sides of them
SIDES = ("top center", "bottom center", "middle left", "top center", "middle right", "bottom right")


SIGNS: Mapping[str, str] = {"better": " ▲", "worse": " ▼"}


@report_sections("scores", order=10)
def scores(collected: ReportInput) -> Section | None:
    """Every model on every task, and what changed against the baseline."""
    blocks: list[Block] = []
    for group in collected.evaluated:
        if len(collected.evaluated) > 1:
            blocks.append(Words(f"{', '.join(group.names)} (other data or options than the other evaluations):"))
        blocks.append(_main_table(group))
        if group.changes:
            blocks.append(
                Words(
                    f"▲ ▼: measurably better or worse than {group.baseline.model} "
                    f"(paired test over the same queries, {100 * group.confidence:g} %, corrected for the number of "
                    "tasks), with the difference in points."
                )
            )
        for model, reasons in group.untested.items():
            if reasons:
                blocks.append(Words(f"Not tested for {model}: {'; '.join(reasons)}.", warns=True))
        blocks += [_dots(group), _all_metrics(group)]
    blocks += [table for step in collected.of("evaluate") if (table := _models_table(step)) is not None]
    return Section("Scores", blocks) if blocks else None


@report_sections("findings", order=15)
def findings(collected: ReportInput) -> Section | None:
    """What a reader of the numbers should know of data and models, as the commands said it."""
    said = {
        str(finding["said"]): None
        for step in collected.steps
        for finding in step.described.get("findings") or ()
        if isinstance(finding, dict) and "said" in finding
    }
    return Section("To know", [Words(plain(sentence), warns=True) for sentence in said]) if said else None


@report_sections("target and general", order=20)
def target_and_general(collected: ReportInput) -> Section | None:
    """What each model gains on the target and loses on the general tasks; the front that none beats."""
    blocks: list[Block] = []
    for group in collected.evaluated:
        points = [
            (model.model, target, general)
            for model in group.models
            if (target := group.mean(model, "target")) is not None
            and (general := group.mean(model, "general")) is not None
        ]
        if points:
            widths = {one.model: (_half_width(one, "target"), _half_width(one, "general")) for one in group.models}
            blocks.append(_trade(points, _tradeoffs(collected, group), widths))
    return Section("Target and general", blocks) if blocks else None


def _main_table(group: ComparedEvaluations) -> Table:
    changes = {(model, one.task): one for model, row_scores in group.changes.items() for one in row_scores}
    tasks = _tasks(group.models)
    rows: list[list[str | Cell]] = []
    for task, (role, metric) in tasks.items():
        row_scores = [next((score for score in model.main() if score.task == task), None) for model in group.models]
        row: list[str | Cell] = [Cell(task, f"{role}, {metric}")]
        for model, score in zip(group.models, row_scores, strict=True):
            row.append(_cell(score, changes.get((model.model, task))))
        rows.append(row)
    for role in ("target", "general"):
        means = [group.mean(model, role) for model in group.models]  # type: ignore[arg-type]
        if sum(role == own for own, _ in tasks.values()) > 1 and means[0] is not None:
            rows.append(
                [
                    Cell(f"mean of {role} tasks", "that all were judged on"),
                    *(_mean_cell(value, means[0], place) for place, value in enumerate(means)),
                ]
            )
    return Table(["task", *(model.model for model in group.models)], rows)


def _cell(score: Score | None, change: TaskChange | None) -> Cell:
    """Return a score; only what is measurably better or worse is marked, not the largest."""
    if score is None:
        return Cell("-", tone="muted")
    if change is None:
        return Cell(f"{score.value:.4f}")
    tones: dict[str, Tone] = {"better": "better", "worse": "worse"}
    note = f"{100 * change.difference:+.1f}{SIGNS.get(change.verdict, '')}"
    return Cell(f"{score.value:.4f}", note, tones.get(change.verdict, ""))


def _mean_cell(value: float | None, first: float, place: int) -> Cell:
    if value is None:
        return Cell("-", tone="muted")
    return Cell(f"{value:.4f}", f"{100 * (value - first):+.1f}" if place else "")


def _tasks(models: Sequence[ModelScores]) -> dict[str, tuple[str, str]]:
    """Role and main metric of each task, the target's first."""
    tasks = {score.task: (score.role, score.metric) for model in models for score in model.main()}
    return dict(sorted(tasks.items(), key=lambda item: item[1][0] != "target"))


def _dots(group: ComparedEvaluations) -> Plot:
    """Return scores as dots with their intervals: bars would have to begin at zero, where nothing is to be seen."""
    tasks = list(_tasks(group.models))
    metrics = list(dict.fromkeys(metric for _, metric in _tasks(group.models).values()))
    traces: list[dict[str, Any]] = []
    for place, model in enumerate(group.models):
        main = {score.task: score for score in model.main()}
        own = [main[task] for task in tasks if task in main]
        ends = [one.interval or (one.value, one.value) for one in own]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plain(model.model),
                "x": [one.task for one in own],
                "y": [round(one.value, 5) for one in own],
                "error_y": _error([one.value for one in own], ends),
                "marker": {"color": colour_of(place), "size": 10},
                "hovertemplate": "%{x}<br>%{y:.4f}<extra>" + plain(model.model) + "</extra>",
            }
        )
    figures = {"scores": figure(traces, scattermode="group", yaxis={"title": " or ".join(metrics)})}
    if group.changes:
        figures[f"points against {group.baseline.model}"] = _differences(group)
    said = f"Scores of {len(group.models)} models on {len(tasks)} tasks with their intervals."
    return Plot("Each task, with intervals", figures, said=said)


def _differences(group: ComparedEvaluations) -> dict[str, Any]:
    traces = []
    places = {model.model: place for place, model in enumerate(group.models)}
    for model, changes in group.changes.items():
        values = [100 * change.difference for change in changes]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plain(model),
                "x": [change.task for change in changes],
                "y": [round(value, 3) for value in values],
                "error_y": _error(values, [(100 * change.interval[0], 100 * change.interval[1]) for change in changes]),
                "marker": {"color": colour_of(places[model]), "size": 10},
                "hovertemplate": "%{x}<br>%{y:+.1f} points<extra>" + plain(model) + "</extra>",
            }
        )
    line = {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": 0,
        "y1": 0,
        "line": {"color": MUTED, "dash": "dot"},
    }
    return figure(traces, shapes=[line], scattermode="group", yaxis={"title": "points"})


def _error(values: Sequence[float], ends: Sequence[tuple[float, float]]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [round(max(0.0, high - value), 5) for value, (_, high) in zip(values, ends, strict=True)],
        "arrayminus": [round(max(0.0, value - low), 5) for value, (low, _) in zip(values, ends, strict=True)],
        "thickness": 1.4,
        "width": 4,
    }


def _all_metrics(group: ComparedEvaluations) -> Table:
    rows = [
        [
            score.task,
            model.model,
            score.metric,
            f"{score.value:.4f}",
            "-" if score.interval is None else f"{score.interval[0]:.4f} to {score.interval[1]:.4f}",
            str(score.count),
        ]
        for task in _tasks(group.models)
        for model in group.models
        for score in model.scores
        if score.task == task
    ]
    header = ["task", "model", "metric", "value", "interval", "queries or texts"]
    return Table(header, rows, "All metrics", folded=True)


def _models_table(step: Step) -> Table | None:
    """Return how each model of an evaluation was judged, and what that cost."""
    models: Mapping[str, Any] = step.described.get("models") or {}
    if not isinstance(models, dict) or not models:
        return None
    rows = []
    for name, about in models.items():
        prompts = about.get("prompts") or {}
        speed = about.get("texts_a_second")
        searches = about.get("retrieval") or {}
        rows.append(
            [
                name,
                *(repr(prompts[role]) if prompts.get(role) else "none" for role in ("query", "document")),
                str(about.get("precision", "-")),
                "-" if speed is None else f"{speed:g}",
                "; ".join(
                    f"{task}: {one['documents']:,.0f} documents, {one['index_megabytes']:.1f} MB, "
                    f"{one['search_ms']:.2f} ms"
                    for task, one in searches.items()
                )
                or "-",
            ]
        )
    header = ["model", "query prompt", "document prompt", "precision", "texts/s", "exact search: size, time of a query"]
    return Table(header, rows, f"{step.name}: how models were judged", folded=True)


def _tradeoffs(collected: ReportInput, group: ComparedEvaluations) -> list[list[tuple[str, float, float]]]:
    """Lines of merges by their share, of the runs that the evaluations are of: name, target, general."""
    lines = []
    beside = {step.folder.parent for step in group.steps}
    for step in collected.of("tradeoff"):
        if step.folder.parent not in beside:
            continue
        points = json_of(step.folder / "tradeoff.json")["points"]
        lines.append([(f"share {share:g}", target, general) for share, target, general in points])
    return lines


def _half_width(model: ModelScores, role: str) -> float:
    """Return half of the interval of a mean over tasks, from those of the tasks, which are independent."""
    ends = [score.interval or (score.value, score.value) for score in model.main() if score.role == role]
    return math.sqrt(sum(((high - low) / 2) ** 2 for low, high in ends)) / max(1, len(ends))


def _trade(
    points: Sequence[tuple[str, float, float]],
    lines: Sequence[Sequence[tuple[str, float, float]]],
    widths: Mapping[str, tuple[float, float]],
) -> Plot:
    every = [*points, *(point for line in lines for point in line)]
    front = sorted(point for point in every if not any(_beats(other, point) for other in every))
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "shares of the tuned model",
            "x": [target for _, target, _ in line],
            "y": [general for _, _, general in line],
            "text": [name for name, _, _ in line],
            "line": {"color": MUTED, "dash": "dot"},
            "marker": {"size": 5},
            "hovertemplate": "%{text}<br>target %{x:.4f}<br>general %{y:.4f}<extra></extra>",
        }
        for line in lines
    ]
    if len(front) > 1:
        front.sort(key=lambda one: one[1])
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "front: none is better on both",
                "x": [target for _, target, _ in front],
                "y": [general for _, _, general in front],
                "line": {"color": colour_of(0), "width": 2, "shape": "linear"},
                "hoverinfo": "skip",
            }
        )
    for place, (name, target, general) in enumerate(points):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": plain(name),
                "x": [target],
                "y": [general],
                "text": [plain(name) if len(points) <= 8 else ""],
                "textposition": SIDES[place % len(SIDES)],
                "cliponaxis": False,
                "error_x": _whiskers(widths[name][0], place),
                "error_y": _whiskers(widths[name][1], place),
                "marker": {"size": 13, "color": colour_of(place), "symbol": "circle" if place else "diamond"},
                "hovertemplate": plain(name) + "<br>target %{x:.4f}<br>general %{y:.4f}<extra></extra>",
            }
        )
    base = points[0][2]
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": base, "y1": base}
    shown = figure(
        traces,
        shapes=[{**line, "line": {"color": MUTED, "dash": "dash", "width": 1}}],
        xaxis={"title": "target, mean score → better"},
        yaxis={"title": "general, mean score → better"},
    )
    said = "; ".join(f"{name}: target {target:.4f}, general {general:.4f}" for name, target, general in points)
    return Plot("Mean target score against mean general score, with intervals", {"": shown}, said=said)


def _whiskers(half: float, place: int) -> dict[str, Any]:
    return {"type": "constant", "value": round(half, 5), "color": colour_of(place), "thickness": 1, "width": 3}


def _beats(other: tuple[str, float, float], one: tuple[str, float, float]) -> bool:
    return other[1] >= one[1] and other[2] >= one[2] and other[1:] != one[1:]
