"""What came of a reproduction: means over targets and seeds with intervals, bars, Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
Scores = Mapping[str, Mapping[str, Any]]
"""By task: metric, value, values of queries."""
Results = Mapping[tuple[int, str, str], Scores]
"""By seed, target and way."""
Doubles = NDArray[np.float64]


def over_targets(values: Doubles, seed: int = 13) -> tuple[float, float, float]:
    """Return the mean of rows, shape (targets,), and its 95 % bootstrap interval over the targets."""
    generator = np.random.default_rng(seed)
    drawn = values[generator.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def summary(base: Scores, results: Results, ways: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each way how the target and the mean of the others changed from the base, in points of 100.

    Args:
        base: Scores of the base.
        results: Scores of all models.
        ways: Those to show; one counts over the targets and seeds that have it.
    """
    rows = []
    for way in ways:
        gains, others, tuned_gains = [], [], []
        for target in dict.fromkeys(key[1] for key in results if key[2] == way):
            seeds = [seed for seed, one, name in results if one == target and name == way]
            gained = [_changes(base, results[seed, target, way], target) for seed in seeds]
            tuned = [_changes(base, results[seed, target, "tuned"], target) for seed in seeds]
            gains.append(np.mean([one[0] for one in gained]))
            others.append(np.mean([one[1] for one in gained]))
            tuned_gains.append(np.mean([one[0] for one in tuned]))
        if not gains:
            continue
        gain, other = np.array(gains, float), np.array(others, float)
        kept = _ratio(gain, np.array(tuned_gains, float))
        rows.append(
            {
                "way": way,
                "targets": len(gains),
                "seeds": len({seed for seed, _, name in results if name == way}),
                "target": over_targets(gain),
                "others": over_targets(other),
                "sum": over_targets(gain + other),
                "kept": kept,
                "better_targets": int((gain > 0).sum()),
            }
        )
    return rows


def _changes(base: Scores, scores: Scores, target: str) -> tuple[float, float]:
    """Return the change on the target, and the mean change on the other tasks."""
    moved = {task: 100 * (scores[task]["value"] - base[task]["value"]) for task in base}
    return moved[target], float(np.mean([change for task, change in moved.items() if task != target]))


def _ratio(gain: Doubles, tuned: Doubles) -> tuple[float, float, float] | None:
    """Return which part of the tuned models' gain is kept, all targets together, and its interval over the targets."""
    if tuned.sum() <= 0:
        return None
    generator = np.random.default_rng(13)
    rows = generator.integers(len(gain), size=(RESAMPLES, len(gain)))
    tops, bottoms = gain[rows].sum(axis=1), tuned[rows].sum(axis=1)
    drawn = tops[bottoms > 0] / bottoms[bottoms > 0]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(gain.sum() / tuned.sum()), float(low), float(high)


def new_tasks(base: Scores, results: Results, ways: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each way how a target that no model was tuned on changed from the base, in points of 100."""
    rows = []
    for way in ways:
        changes = []
        for target in dict.fromkeys(key[1] for key in results if key[2] == way):
            values = [
                scores[target]["value"] for (_, one, name), scores in results.items() if (one, name) == (target, way)
            ]
            changes.append(100 * (np.mean(values) - base[target]["value"]))
        if changes:
            rows.append({"way": way, "targets": len(changes), "target": over_targets(np.array(changes, float))})
    return rows


def bars(
    rows: Sequence[Mapping[str, Any]], unseen: Sequence[Mapping[str, Any]], results: Results
) -> list[dict[str, Any]]:
    """Return what was to be reached, what was, and whether."""
    by_way = {row["way"]: row for row in rows}
    found = []

    def note(bar: str, reached: str, met: bool) -> None:
        found.append({"bar": bar, "reached": reached, "met": bool(met)})

    if tuned := by_way.get("tuned"):
        wanted = tuned["targets"] - 1
        better = tuned["better_targets"]
        note("tuned better than the base on all targets but one", f"{better} of {tuned['targets']}", better >= wanted)
    if two := by_way.get("cocktail of 2"):
        kept, others = (two["kept"] or (0.0,))[0], two["others"][0]
        reached = f"{100 * kept:.0f} %, {others:+.2f}"
        note("cocktail of 2 keeps 85 % of the gain, others from -0.3", reached, kept >= 0.85 and others >= -0.3)
    if auto := by_way.get("auto"):
        kept, others = (auto["kept"] or (0.0,))[0], auto["others"][0]
        reached = f"{100 * kept:.0f} %, {others:+.2f}"
        note("auto keeps 95 % of the gain, others from -0.1", reached, kept >= 0.95 and others >= -0.1)
        for way in ("cocktail of 2", "cocktail of 10, 100 examples"):
            if way in by_way:
                low, mean, high = _paired(results, "auto", way)
                reached = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
                note(f"auto better than the {way} on target and others together", reached, low > 0)
    if unseen:
        soup = next((row["target"][0] for row in unseen if row["way"] == "uniform soup"), 0.0)
        weighted = [row for row in unseen if row["way"] not in ("uniform soup", "best single, 5 examples")]
        best = max(weighted, key=lambda row: row["target"][0], default=None)
        if best is not None:
            reached = f"{best['way']}: {best['target'][0]:+.2f}; base 0, soup {soup:+.2f}"
            note(
                "new tasks: weighted or searched not below base and soup", reached, best["target"][0] >= max(0.0, soup)
            )
    return found


def _paired(results: Results, one: str, other: str) -> tuple[float, float, float]:
    """Return low end, mean and high end of the difference of two ways in target plus mean of the others."""
    differences = []
    shared = {key[:2] for key in results if key[2] == one} & {key[:2] for key in results if key[2] == other}
    for target in dict.fromkeys(target for _, target in sorted(shared)):
        moved = []
        for seed, name in sorted(shared):
            if name == target:
                changes = _changes(results[seed, target, other], results[seed, target, one], target)
                moved.append(sum(changes))
        differences.append(np.mean(moved))
    mean, low, high = over_targets(np.array(differences, float))
    return low, mean, high


def markdown(rows: Sequence[Mapping[str, Any]], unseen: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables."""
    lines = ["| | target | others | sum | gain kept | targets × seeds |", "|---|---|---|---|---|---|"]
    for row in rows:
        kept = "-" if row["kept"] is None else f"{100 * row['kept'][0]:.0f} %"
        cells = [
            *(_interval(row[name]) for name in ("target", "others", "sum")),
            kept,
            f"{row['targets']} × {row['seeds']}",
        ]
        lines.append(f"| {row['way']} | {' | '.join(cells)} |")
    if unseen:
        lines += ["", "| task that no model has seen | target | targets |", "|---|---|---|"]
        lines += [f"| {row['way']} | {_interval(row['target'])} | {row['targets']} |" for row in unseen]
    return "\n".join(lines)


def by_target(base: Scores, results: Results, ways: Sequence[str]) -> str:
    """Return a table of each target: the base, and the mean over seeds of each way, on the target itself."""
    targets = list(base)
    lines = [f"| | {' | '.join(targets)} |", "|---" * (len(targets) + 1) + "|"]
    lines.append("| metric | " + " | ".join(base[target]["metric"] for target in targets) + " |")
    lines.append("| base | " + " | ".join(f"{100 * base[target]['value']:.1f}" for target in targets) + " |")
    for way in ways:
        cells = []
        for target in targets:
            values = [
                scores[target]["value"] for (_, one, name), scores in results.items() if (one, name) == (target, way)
            ]
            cells.append(f"{100 * float(np.mean(values)):.1f}" if values else "-")
        if set(cells) != {"-"}:
            lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(values: Sequence[float]) -> str:
    mean, low, high = values
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
