"""The end of a run: in words and tables, and as a page."""

from __future__ import annotations

import logging
from pathlib import Path

from bge_cocktail.cli.flags import show
from bge_cocktail.errors import CocktailError
from bge_cocktail.evaluation import ModelScores
from bge_cocktail.options import Evaluating
from bge_cocktail.outcome import Outcome
from bge_cocktail.report.table import score_table, text_table

REPORT_FILE = "report.html"
log = logging.getLogger(__name__)


def show_outcome(outcome: Outcome, judging: Evaluating, output_format: str) -> None:
    """Write the report of a run into its folder, and print what it gave, with or without a report."""
    from bge_cocktail.report.building import build_report, write_report
    from bge_cocktail.report.material import gather

    page: Path | None = outcome.folder / REPORT_FILE
    try:
        material = gather([outcome.folder], confidence=judging.confidence, seed=judging.seed)
        write_report(
            build_report(material, f"Report: {outcome.folder.resolve().name}"), material, outcome.folder / REPORT_FILE
        )
    except (CocktailError, OSError) as error:
        log.warning("no report (bge-cocktail report %s -o FILE tries again): %s", outcome.folder, error)
        page = None
    show({**outcome.to_json(), "report": page and str(page)}, summary(outcome, page), output_format)


def summary(outcome: Outcome, page: Path | None) -> str:
    """Table of scores, what each cocktail keeps, the trade-off, and where the files are."""
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
