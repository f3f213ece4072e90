"""What merges were made of: weights, the merges that were tried, distances layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bge_cocktail.core.outputs import json_of
from bge_cocktail.report.blocks import (
    MUTED,
    Block,
    Plot,
    Section,
    Table,
    Words,
    colour_of,
    colours_of,
    figure,
    plain,
    report_sections,
)
from bge_cocktail.report.collect import ReportInput, Step


@report_sections("merging", order=60)
def merging(collected: ReportInput) -> Section | None:
    """Weights of merges, what was tried to find them, and where models differ."""
    blocks: list[Block] = []
    weighed = [step for step in collected.of("merge") if _models(step)]
    if weighed:
        blocks.append(_weights(weighed, collected))
    for step in weighed:
        blocks += _trials(step)
    for step in collected.of("inspect"):
        blocks += _distances(step)
    return Section("Merging", blocks) if blocks else None


def _models(step: Step) -> list[Mapping[str, Any]]:
    models = step.described.get("models")
    return (
        [model for model in models if isinstance(model, dict) and "weight" in model] if isinstance(models, list) else []
    )


def _weights(steps: Sequence[Step], collected: ReportInput) -> Plot:
    known = collected.model_names()
    named = [[(_name(model, step, known), float(model["weight"])) for model in _models(step)] for step in steps]
    names = list(dict.fromkeys(name for models in named for name, _ in models))
    traces = []
    for name, colour in colours_of(collected, names).items():
        values = [sum(weight for own, weight in models if own == name) for models in named]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": plain(name),
                "y": [step.name for step in steps],
                "x": [round(value, 4) for value in values],
                "marker": {"color": colour},
                "hovertemplate": "%{x:.3f}<extra>" + plain(name) + "</extra>",
            }
        )
    said = "; ".join(
        f"{step.name}: " + ", ".join(f"{name} {weight:.3f}" for name, weight in models)
        for step, models in zip(steps, named, strict=True)
    )
    shown = figure(
        traces,
        barmode="relative",
        height=150 + 44 * len(steps),
        margin={"l": 170, "r": 16, "t": 40, "b": 40},
        xaxis={"title": "weight"},
        yaxis={"autorange": "reversed"},
    )
    return Plot("Weights of the models in each merge", {"": shown}, said=said)


def _trials(step: Step) -> list[Block]:
    trials: Sequence[Mapping[str, Any]] = step.described.get("trials") or []
    blocks: list[Block] = []
    both = [trial for trial in trials if trial.get("target") is not None and trial.get("general") is not None]
    if both:
        chosen = [model["weight"] for model in _models(step)]
        front = sorted((trial["target"], trial["general"]) for trial in both if trial.get("on_front"))
        kept = [trial for trial in both if _same(trial["weights"], chosen)]
        traces = [
            _dots("tried", [trial for trial in both if not trial.get("on_front")], MUTED, 8),
            {"type": "scatter", "mode": "lines+markers", "name": "front", "x": [x for x, _ in front],
             "y": [y for _, y in front], "line": {"color": colour_of(1)}, "hoverinfo": "skip"},
            _dots("chosen", kept, colour_of(2), 14),
        ]  # fmt: skip
        shown = figure(traces, xaxis={"title": "target → better"}, yaxis={"title": "general → better"})
        blocks.append(Plot(f"{step.name}: merges that were tried", {"": shown}, said=f"{len(both)} merges"))
    if note := step.described.get("note"):
        blocks.append(Words(f"{step.name}: {note}."))
    return blocks


def _dots(name: str, trials: Sequence[Mapping[str, Any]], colour: str, size: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [trial["target"] for trial in trials],
        "y": [trial["general"] for trial in trials],
        "text": [
            ", ".join(f"{weight:.2f}" for weight in trial["weights"]) + f" {trial.get('method', '')}"
            for trial in trials
        ],
        "marker": {"color": colour, "size": size},
        "hovertemplate": "weights %{text}<br>target %{x:.4f}<br>general %{y:.4f}<extra></extra>",
    }


def _same(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(abs(x - y) < 1e-6 for x, y in zip(one, other, strict=True))


def _distances(step: Step) -> list[Block]:
    try:
        inspection = json_of(step.folder / "inspect.json")
    except (OSError, ValueError):
        return []
    blocks: list[Block] = []
    if inspection.get("moved"):
        maps = {
            "distance from the reference": _heat(
                inspection["compared"], inspection["layers"], inspection["moved"], "Blues", (0, None)
            )
        }
        for name, title, scale in (
            ("agreement", "cosine of task vectors", "RdBu"),
            ("conflicts", "moved to opposite sides", "RdBu"),
        ):
            if inspection.get(name):
                low = -1 if name == "agreement" else 0
                rows = list(inspection[name].values())
                maps[title] = _heat(list(inspection[name]), inspection["layers"], rows, scale, (low, 1))
        blocks.append(Plot(f"{step.name}: layer by layer", maps, said="How far each layer was led from the reference."))
    rows = [
        [f"{Path(pair['one']).name} × {Path(pair['other']).name}",
         *("-" if pair[name] is None else f"{pair[name]:.3f}" for name in ("cosine", "agreement", "conflicts")),
         pair["verdict"] or "; ".join(pair["refused"])]
        for pair in inspection["pairs"]
    ]  # fmt: skip
    header = ["pair", "cosine", "task vectors", "opposite signs", "verdict"]
    blocks.append(Table(header, rows, f"{step.name}: pairs of models"))
    return blocks


def _heat(
    rows: Sequence[str], layers: Sequence[str], values: Sequence[Any], scale: str, ends: tuple[float, float | None]
) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": list(layers),
        "y": list(rows),
        "z": [[None if value is None else round(value, 5) for value in row] for row in values],
        "colorscale": scale,
        "reversescale": scale == "Blues",
        "zmin": ends[0],
        "hovertemplate": "%{y}, %{x}: %{z:.4f}<extra></extra>",
    }
    if ends[1] is not None:
        trace["zmax"] = ends[1]
    height = 170 + 36 * len(rows)
    return figure([trace], height=height, margin={"l": 170, "r": 16, "t": 16, "b": 90}, xaxis={"tickangle": -45})


def _name(one: Mapping[str, Any], step: Step, known: Mapping[str, str]) -> str:
    """Return what evaluations call a model of the same content, else the name of its folder."""
    path = str(one.get("model", "?"))
    return known.get(str((step.described.get("inputs") or {}).get(path)), Path(path).name)
