"""``bge-cocktail compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from bge_cocktail.cli.flags import PATH, comparing_flags, format_flag
from bge_cocktail.cli.flags import show as show_result
from bge_cocktail.core.errors import CocktailError, GateError, UsageError

if TYPE_CHECKING:
    from bge_cocktail.evaluating.compare import Comparison
    from bge_cocktail.evaluating.query_changes import QueryChange


@click.command("compare")
@click.argument("evaluations", nargs=-1, required=True, type=PATH)
@comparing_flags
@click.option(
    "--fail-if-worse",
    type=click.Choice(["target", "general", "any"]),
    help="Exit with code 3 if a model is measurably worse on a task of this role: for CI.",
)
@click.option(
    "--show",
    type=click.IntRange(0),
    default=0,
    help="Also show so many queries of each task that gained and lost most.",
)
@format_flag
def command(
    evaluations: tuple[Path, ...],
    baseline: str | None,
    fail_if_worse: str | None,
    confidence: float,
    resamples: int,
    seed: int,
    show: int,
    output_format: str,
) -> None:
    """Say which models are measurably better or worse than another, task by task.

    EVALUATIONS are folders that `evaluate` wrote. Over the same queries and texts: a paired permutation test, corrected
    for the number of tasks (Holm), and a bootstrap interval of the difference.
    """
    from bge_cocktail.evaluating.compare import compare

    compared = compare(evaluations, baseline=baseline, confidence=confidence, resamples=resamples, seed=seed)
    roles = {change.role for changes in compared.changes.values() for change in changes}
    if fail_if_worse not in (None, "any", *roles):
        raise UsageError(
            f"--fail-if-worse {fail_if_worse}: no {fail_if_worse} task was compared, so nothing could fail"
        )
    content = compared.to_json()
    blocks = []
    for model in compared.changes:
        blocks += _change_table(compared, model)
        if show:
            most = compared.query_changes(model, show)
            content["models"][model]["moved"] = [change.to_json() for change in most]
            blocks += [*_query_tables(most), *_not_kept(compared)]
    blocks += [compared.advice()] if compared.advice() else []
    show_result(content, "\n\n".join(blocks), output_format)
    if fail_if_worse is not None:
        _fail_if_worse(compared, fail_if_worse)


def _fail_if_worse(compared: Comparison, role: str) -> None:
    """Raise if a model is measurably worse on a task of the role, or a task was judged for only some models."""
    # of the reasons of `untested`, the other one, a metric that is no mean, is no failure
    if any("was not judged" in reason for reasons in compared.untested.values() for reason in reasons):
        raise CocktailError("--fail-if-worse: not all models were judged on the same tasks (see above)")
    if worse := compared.worse(role):  # type: ignore[arg-type]
        first = compared.baseline.model
        raise GateError(f"--fail-if-worse {role}: measurably worse than {first}: {', '.join(worse)}")
    tasks = "task" if role == "any" else f"{role} task"
    click.echo(f"--fail-if-worse {role}: passed, nothing is measurably worse on a {tasks}", err=True)


def _change_table(compared: Comparison, model: str) -> list[str]:
    """Return the table of a model's changes, with its sentence, and what wasn't tested."""
    from bge_cocktail.report.text import text_table

    rows = [
        (
            change.task,
            change.role,
            change.metric,
            f"{change.before:.4f}",
            f"{change.after:.4f}",
            f"{100 * change.difference:+.1f}",
            f"[{100 * change.interval[0]:+.1f}, {100 * change.interval[1]:+.1f}]",
            f"{change.p_corrected:.4f}",
            "-" if change.effect is None else f"{change.effect:+.2f}",
            "-" if change.effect is None else f"{change.gained}/{change.lost}",
            change.verdict,
        )
        for change in compared.changes[model]
    ]
    points = ("points", f"{100 * compared.confidence:g} %", "p (Holm)", "effect", "gained/lost", "")
    header = ("task", "role", "metric", compared.baseline.model, model, *points)
    tables = [f"{compared.words()[model]}\n\n{text_table(header, rows)}"]
    if compared.untested[model]:
        tables.append("not tested: " + "; ".join(compared.untested[model]))
    return tables


def _not_kept(compared: Comparison) -> list[str]:
    """Name the tasks that have no queries to show."""
    first = compared.baseline
    missing = [
        score.task
        for score in first.main()
        if not score.per_query or (first.model, score.task) not in compared.details.answers
    ]
    shown = "no queries to show (not kept, or the score is no mean over them)"
    return [f"{shown}: {', '.join(missing)}"] if missing else []


def _query_tables(changes: list[QueryChange]) -> list[str]:
    from bge_cocktail.report.text import shortened, text_table

    tables = []
    for task in dict.fromkeys(change.task for change in changes):
        rows = []
        for change in (change for change in changes if change.task == task):
            text = change.text if isinstance(change.text, str) else " / ".join(change.text)
            if isinstance(change.relevant, list):
                wanted = change.relevant[0]
                said = " to ".join("-" if rank is None else str(rank) for rank in wanted["ranks"])
                shown = f"{wanted['document']}: {wanted['text']}"
            else:
                said, shown = f"{change.answers[0]} to {change.answers[1]}", str(change.relevant)
            rows.append((f"{100 * change.difference:+.1f}", said, shortened(text), shortened(shown)))
        tables.append(text_table((f"{task}: points", "rank or label", "query or text", "wanted"), rows))
    return tables
