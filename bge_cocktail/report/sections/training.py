"""How training went: curves, seeds, searches; also of what isn't finished."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bge_cocktail.core.outputs import json_of
from bge_cocktail.core.runs import BAD_BATCH_FILE
from bge_cocktail.report.blocks import (
    Block,
    Cell,
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

TRAININGS = ("train", "classify train")
MOST_POINTS = 400
Curve = Sequence[Mapping[str, Any]]


@report_sections("training", order=50)
def training(collected: ReportInput) -> Section | None:
    """Curves of losses and of what was watched, means over seeds, searches."""
    curves = {step.name: points for step in collected.steps if (points := curves_of(step))}
    blocks: list[Block] = []
    if curves:
        losses = [
            name
            for name in ("loss", "dev_loss")
            if any(name in point for points in curves.values() for point in points)
        ]
        watched = sorted(
            {name for points in curves.values() for point in points for name in point if _is_watched(name)}
        )
        figures = {_shown(name): _figure(curves, name, colours_of(collected, curves)) for name in (*losses, *watched)}
        blocks.append(Plot("Curves", figures, said="Losses and scores by step."))
        blocks.append(_table([step for step in collected.of(*TRAININGS) if "final_loss" in step.described]))
    for step in collected.of(*TRAININGS):
        blocks += [*_seeds(step), *_search(step)]
    return Section("Training", blocks) if blocks else None


@report_sections("unfinished", order=5)
def unfinished(collected: ReportInput) -> Section | None:
    """What isn't finished, and how far it came."""
    rows = []
    for step in collected.steps:
        if step.finished:
            continue
        curve = curves_of(step)
        reached = f"step {curve[-1]['step']}" if curve else "no checkpoint yet"
        last_written = max((path.stat().st_mtime for path in step.folder.rglob("*") if path.is_file()), default=0.0)
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(last_written))
        failed = (step.folder / BAD_BATCH_FILE).is_file()
        state = f"failed: its loss was no number ({BAD_BATCH_FILE})" if failed else "still going, or cut off"
        rows.append([step.name, step.command, reached, when, state])
    if not rows:
        return None
    warning = Words("Not all is finished: figures of these runs cover only what there is so far.", warns=True)
    return Section("Unfinished", [warning, Table(["folder", "what", "came to", "last written", "state"], rows)])


def curves_of(step: Step) -> list[dict[str, Any]]:
    """Return the points of a training: of its curves, or of its last checkpoint that can be read."""
    file = step.folder / "curves.jsonl"
    if file.is_file():
        return list(_whole_lines(file.read_text(encoding="utf-8")))
    states = sorted(step.folder.glob("**/checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    for state in reversed(states):
        try:
            history = json_of(state)["log_history"]
        except (OSError, ValueError, KeyError):  # it is being written
            continue
        return [{name.removeprefix("eval_"): value for name, value in point.items()} for point in history]
    return []


def _whole_lines(text: str) -> Iterator[dict[str, Any]]:
    """JSON Lines up to one that was cut off while it was written."""
    for line in filter(str.strip, text.splitlines()):
        try:
            yield json.loads(line)
        except ValueError:
            return


def _figure(curves: Mapping[str, Curve], name: str, colours: Mapping[str, str]) -> dict[str, Any]:
    traces = []
    for run, points in curves.items():
        own = [(point["step"], point[name]) for point in points if name in point]
        if not own:
            continue
        thinned = own[:: max(1, len(own) // MOST_POINTS)]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(thinned) < 40 else "lines",
                "name": plain(run),
                "x": [step for step, _ in thinned],
                "y": [round(value, 5) for _, value in thinned],
                "line": {"color": colours[run], "width": 2},
                "hovertemplate": "step %{x}: %{y:.4f}<extra>" + plain(run) + "</extra>",
            }
        )
    return figure(traces, height=360, xaxis={"title": "step"}, yaxis={"title": _shown(name)})


def _table(steps: Sequence[Step]) -> Table:
    rows: list[list[str | Cell]] = []
    for step in steps:
        described = step.described
        before, best = described.get("dev_before"), described.get("dev_best")
        rows.append(
            [
                step.name,
                str(described.get("steps", "-")),
                str(described.get("best_step", "-")),
                f"{described['final_loss']:.4f}",
                "-" if before is None or best is None else Cell(f"{best:.4f}", f"from {before:.4f}"),
                ", ".join(
                    f"{name} {100 * (after - first):+.1f}"
                    for name, (first, after) in described.get("general", {}).items()
                )
                or "-",
                f"{described.get('seconds') or 0:.0f} s",
            ]
        )
    header = ["run", "steps", "best step", "last loss", "dev, best", "watched general tasks, points", "time"]
    return Table(header, rows, "Trainings")


def _seeds(step: Step) -> list[Block]:
    runs: Mapping[str, Mapping[str, float]] = step.described.get("runs") or {}
    mean: Mapping[str, float] = step.described.get("mean") or {}
    spread: Mapping[str, float] = step.described.get("spread") or {}
    if not runs or not mean:
        return []
    rows: list[list[str]] = [[run, *(f"{metrics[name]:.4f}" for name in mean)] for run, metrics in runs.items()]
    rows.append(["mean", *(f"{value:.4f} ± {spread.get(name, 0):.4f}" for name, value in mean.items())])
    if soup := step.described.get("soup"):
        rows.append(["soup", *(f"{soup[name]:.4f}" if name in soup else "-" for name in mean)])
    return [Table([step.name, *mean], rows, f"{step.name}: several trainings")]


def _search(step: Step) -> list[Block]:
    search: Mapping[str, Any] = step.described.get("search") or {}
    trials: Sequence[Mapping[str, Any]] = search.get("trials") or []
    if not trials:
        return []
    names = [name for name in trials[0] if name not in ("trial", "dev", "state")]
    ranked = sorted(trials, key=lambda one: -(one["dev"] if one["dev"] is not None else -1.0))
    rows: list[list[str | Cell]] = [
        [
            Cell(
                str(trial["trial"]),
                "best" if trial["trial"] == search["best"] else "",
                "best" if trial is ranked[0] else "",
            ),
            *(f"{trial[name]:.4g}" if isinstance(trial[name], float) else str(trial[name]) for name in names),
            "-" if trial["dev"] is None else f"{trial['dev']:.4f}",
            trial["state"],
        ]
        for trial in ranked
    ]
    complete = [(trial["trial"], trial["dev"]) for trial in trials if trial["state"] == "complete"]
    best = [max(value for _, value in complete[: place + 1]) for place in range(len(complete))]
    numbers = [number for number, _ in complete]
    dots = {"type": "scatter", "mode": "markers", "name": "trial", "x": numbers, "y": [value for _, value in complete]}
    line = {"type": "scatter", "mode": "lines", "name": "best so far", "x": numbers, "y": best, "line": {"shape": "hv"}}
    figures = {"trials": figure([dots, line], height=320, xaxis={"title": "trial"}, yaxis={"title": "dev"})}
    importance: Mapping[str, float] = search.get("importance") or {}
    if importance:
        shown = sorted(importance.items(), key=lambda item: item[1])
        bar = {"type": "bar", "orientation": "h", "y": [name.replace("_", " ") for name, _ in shown]}
        figures["importance"] = figure(
            [{**bar, "x": [round(value, 4) for _, value in shown], "marker": {"color": colour_of(1)}}],
            height=320,
            margin={"l": 120, "r": 16, "t": 16, "b": 48},
            xaxis={"title": "importance", "range": [0, 1]},
        )
    said = ", ".join(f"{name} {value:.2f}" for name, value in importance.items())
    return [
        Plot(f"{step.name}: search", figures, said=f"Importance: {said}" if said else ""),
        Table(["trial", *(name.replace("_", " ") for name in names), "dev", "state"], rows, "Trials", folded=True),
    ]


def _is_watched(name: str) -> bool:
    return name.startswith(("dev_", "general_")) and name != "dev_loss"


def _shown(name: str) -> str:
    return name.replace("_", " ", 1)
