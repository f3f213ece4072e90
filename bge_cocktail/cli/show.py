"""How a search for options and the end of a run are shown."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_cocktail.cli.flags import show
from bge_cocktail.core.errors import CocktailError

if TYPE_CHECKING:
    from bge_cocktail.evaluating.scores import ModelScores
    from bge_cocktail.flow.flow import RunResult
    from bge_cocktail.options import EvaluateOptions


def searched_names(given: str) -> list[str]:
    """The options that ``--search a,b`` names."""
    return [name.strip().replace("-", "_") for name in given.split(",")]


def show_search(output: Path, found: dict[str, Any], names: Sequence[str], metric: str, output_format: str) -> None:
    """Print the trials, best first, and how much each option matters."""
    from bge_cocktail.report.text import text_table

    rows = [
        [
            str(one["trial"]),
            *(f"{one[name]:.3g}" for name in names),
            "-" if one["dev"] is None else f"{one['dev']:.4f}",
            one["state"],
        ]
        for one in sorted(found["trials"], key=lambda one: -(one["dev"] or 0))
    ]
    matter = ", ".join(f"{name} {value:.2f}" for name, value in found["importance"].items())
    text = text_table(("trial", *names, f"dev {metric}", ""), rows) + (f"\n\nimportance: {matter}" if matter else "")
    show({"output": str(output), **found}, text, output_format)


REPORT_FILE = "report.html"
log = logging.getLogger(__name__)


def show_outcome(outcome: RunResult, judging: EvaluateOptions, output_format: str) -> None:
    """Write the report of a run into its folder, and print what it gave, with or without a report."""
    from bge_cocktail.report.build import build_report, write_report
    from bge_cocktail.report.collect import collect

    page: Path | None = outcome.folder / REPORT_FILE
    try:
        material = collect([outcome.folder], confidence=judging.confidence, seed=judging.seed)
        write_report(
            build_report(material, f"Report: {outcome.folder.resolve().name}"), material, outcome.folder / REPORT_FILE
        )
    except (CocktailError, OSError) as error:
        log.warning("no report (bge-cocktail report %s -o FILE tries again): %s", outcome.folder, error)
        page = None
    show({**outcome.to_json(), "report": page and str(page)}, summary(outcome, page), output_format)


def summary(outcome: RunResult, page: Path | None) -> str:
    """Table of scores, what each cocktail keeps, the trade-off, and where the files are."""
    from bge_cocktail.report.text import score_table, text_table

    base, tuned, *cocktails = outcome.results
    lines = [score_table(outcome.results), "", _change(tuned, base)]
    gain = _difference(tuned.mean("target"), base.mean("target"))
    for cocktail in cocktails:
        kept = _difference(cocktail.mean("target"), base.mean("target"))
        share = "" if not gain or gain < 0 or kept is None else f" ({100 * kept / gain:.0f} % of the gain kept)"
        lines.append(_change(cocktail, base) + share)
    if outcome.tradeoff:
        rows = [(f"{share:.2f}", f"{target:.4f}", f"{general:.4f}") for share, target, general in outcome.tradeoff]
        lines += ["", text_table(("share of tuned", "target", "general"), rows)]
    lines += ["", f"run folder: {outcome.folder}"]
    if outcome.picture:
        lines.append(f"picture:    {outcome.picture}")
    if page:
        lines.append(f"report:     {page}")
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


def _difference(value: float | None, before: float | None) -> float | None:
    return None if value is None or before is None else value - before
