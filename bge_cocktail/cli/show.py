"""What commands that train have in common: their frame, how a search and the end of a run are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from bge_cocktail.cli.flags import show

if TYPE_CHECKING:
    from bge_cocktail.evaluating.scores import ModelScores
    from bge_cocktail.flow.flow import RunResult
    from bge_cocktail.training.engine.repeat import SearchResult


def searched_names(given: str) -> list[str]:
    """Return the options that ``--search a,b`` names."""
    return [name.strip().replace("-", "_") for name in given.split(",")]


def show_search(output: Path, result: SearchResult, names: Sequence[str], metric: str, output_format: str) -> None:
    """Print the trials, best first, and how much each option matters."""
    from bge_cocktail.report.text import text_table

    rows = [
        [
            str(trial["trial"]),
            *(f"{trial[name]:.3g}" for name in names),
            "-" if trial["dev"] is None else f"{trial['dev']:.4f}",
            trial["state"],
        ]
        for trial in sorted(result["trials"], key=lambda one: -(one["dev"] or 0))
    ]
    matter = ", ".join(f"{name} {value:.2f}" for name, value in result["importance"].items())
    text = text_table(("trial", *names, f"dev {metric}", ""), rows) + (f"\n\nimportance: {matter}" if matter else "")
    show({"output": str(output), **result}, text, output_format, output)


@contextmanager
def training(device: str, kept: str = "") -> Iterator[None]:
    """Train inside with memory kept from step to step, and say what an interrupted run has kept.

    Args:
        device: Where the training computes.
        kept: Where what is saved lies, for commands that go on with --resume; the others go on by themselves.
    """
    from bge_cocktail.core.devices import choose_device
    from bge_cocktail.training.engine.malloc import keep_memory
    from bge_cocktail.training.engine.run import Interrupted

    if choose_device(device) == "cpu":
        keep_memory()  # for good, which only a process of our own may decide
    try:
        yield
    except Interrupted as stopped:
        how = f"{kept}; the same command with --resume goes on" if kept else "the same command goes on"
        click.echo(f"{stopped}; {how}", err=True)
        raise


def show_outcome(outcome: RunResult, output_format: str) -> None:
    """Print what a run gave."""
    shown = outcome.report and str(outcome.report)
    show({**outcome.to_json(), "report": shown}, summary(outcome), output_format)


def summary(outcome: RunResult) -> str:
    """Return scores, how much of the gain each cocktail keeps, the trade-off, and where the files are."""
    from bge_cocktail.evaluating.compare import compare
    from bge_cocktail.report.text import score_table, text_table

    base, tuned, *cocktails = outcome.results
    comparison = compare([outcome.folder / "evaluation"], partial=True)
    lines = [score_table(outcome.results, comparison), "", _change(tuned, base)]
    gain = _difference(tuned.mean("target"), base.mean("target"))
    for cocktail in cocktails:
        gain_kept = _difference(cocktail.mean("target"), base.mean("target"))
        lines.append(_change(cocktail, base) + _kept(gain, gain_kept))
    if outcome.tradeoff:
        rows = [(f"{share:.2f}", f"{target:.4f}", f"{general:.4f}") for share, target, general in outcome.tradeoff]
        lines += ["", text_table(("share of tuned", "target", "general"), rows)]
    lines += ["", f"run folder: {outcome.folder}"]
    if outcome.picture:
        lines.append(f"picture:    {outcome.picture}")
    if outcome.report:
        lines.append(f"report:     {outcome.report}")
    return "\n".join(lines)


def _change(model: ModelScores, base: ModelScores) -> str:
    changes = [
        f"{role} {100 * difference:+.1f} points"
        for role, difference in (
            ("target", _difference(model.mean("target"), base.mean("target"))),
            ("general", _difference(model.mean("general"), base.mean("general"))),
        )
        if difference is not None
    ]
    return f"{model.model} against base: {', '.join(changes)}"


def _kept(gain: float | None, gain_kept: float | None) -> str:
    """Return how much of what tuning gained a merge keeps."""
    if gain is None or gain <= 0 or gain_kept is None:
        return ""
    if gain_kept > gain:
        return " (more than tuned alone gains)"
    return f" ({max(0.0, 100 * gain_kept / gain):.0f} % of the gain kept)"


def _difference(value: float | None, before: float | None) -> float | None:
    return None if value is None or before is None else value - before
