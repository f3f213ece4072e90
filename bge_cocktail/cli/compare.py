"""``bge-cocktail compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bge_cocktail.cli.flags import PATH, comparing_flags, format_flag
from bge_cocktail.cli.flags import show as show_result
from bge_cocktail.core.errors import CocktailError, UsageError, nearest

if TYPE_CHECKING:
    from bge_cocktail.evaluating.query_changes import QueryChange
    from bge_cocktail.evaluating.scores import ModelScores
    from bge_cocktail.evaluating.store import EvaluationDetails


@click.command("compare")
@click.argument("evaluations", nargs=-1, required=True, type=PATH)
@comparing_flags(10_000)
@click.option(
    "--fail-if-worse",
    type=click.Choice(["target", "general", "any"]),
    help="Exit with code 1 if a model is measurably worse on a task of this role: for CI.",
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
    from bge_cocktail.evaluating.compare import compare_models, in_words, untested
    from bge_cocktail.evaluating.store import load_details, load_evaluations
    from bge_cocktail.report.text import text_table

    models = {one.model: one for one in load_evaluations(evaluations)}
    details = load_details(evaluations)
    if len(models) < 2:
        raise UsageError(f"only one model was evaluated in {', '.join(map(str, evaluations))}; comparing needs two")
    first = baseline or next(iter(models))
    if first not in models:
        raise UsageError(f"--baseline: no model '{first}'.{nearest(first, models)}")
    found = {
        name: compare_models(models[first], one, details, confidence=confidence, resamples=resamples, seed=seed)
        for name, one in models.items()
        if name != first
    }
    roles = {one.role for changes in found.values() for one in changes}
    if fail_if_worse not in (None, "any", *roles):
        raise UsageError(
            f"--fail-if-worse {fail_if_worse}: no {fail_if_worse} task was compared, so nothing could fail"
        )
    left = {name: untested(models[first], models[name], details) for name in found}
    blocks = []
    most: dict[str, list[QueryChange]] = {}
    for name, changes in found.items():
        rows = [
            (one.task, one.role, one.metric, f"{one.before:.4f}", f"{one.after:.4f}", f"{100 * one.difference:+.1f}",
             f"[{100 * one.interval[0]:+.1f}, {100 * one.interval[1]:+.1f}]", f"{one.p_corrected:.4f}",
             *(("-", "-") if one.effect is None else (f"{one.effect:+.2f}", f"{one.gained}/{one.lost}")), one.verdict)
            for one in changes
        ]  # fmt: skip
        header = ("task", "role", "metric", first, name, "points", f"{100 * confidence:g} %", "p (Holm)", "effect",
                  "gained/lost", "")  # fmt: skip
        blocks.append(f"{name} against {first}: {in_words(changes, confidence)}.\n\n{text_table(header, rows)}")
        if left[name]:
            blocks.append("not tested: " + "; ".join(left[name]))
        if show:
            most[name] = _most_moved(models[first], models[name], details, show)
            blocks += _moved_tables(most[name])
            kept = {one.task for one in models[first].main() if (first, one.task) in details.answers and one.per_query}
            if missing := [one.task for one in models[first].main() if one.task not in kept]:
                blocks.append(f"no queries to show (not kept, or the score is no mean over them): {', '.join(missing)}")
    content: dict[str, Any] = {
        "baseline": first,
        "models": {
            name: {
                "words": in_words(changes, confidence),
                "tasks": [one.to_json() for one in changes],
                "untested": left[name],
                **({"moved": [one.to_json() for one in most[name]]} if show else {}),
            }
            for name, changes in found.items()
        },
    }
    show_result(content, "\n\n".join(blocks), output_format)
    if fail_if_worse and any("was not judged" in reason for reasons in left.values() for reason in reasons):
        raise CocktailError("--fail-if-worse: not all models were judged on the same tasks (see above)")
    worse = [
        f"{name} on {one.task}"
        for name, changes in found.items()
        for one in changes
        if one.verdict == "worse" and fail_if_worse in (one.role, "any")
    ]
    if worse:
        raise CocktailError(f"--fail-if-worse {fail_if_worse}: measurably worse than {first}: {', '.join(worse)}")


def _most_moved(before: ModelScores, after: ModelScores, details: EvaluationDetails, count: int) -> list[QueryChange]:
    """Of each task, the queries and texts that gained most, then those that lost most."""
    from bge_cocktail.evaluating.query_changes import query_changes

    known = {score.task: score for score in after.main()}
    found = []
    for score in before.main():
        if score.task in known:
            changed = query_changes((before.model, score), (after.model, known[score.task]), details)
            gained = [one for one in changed if one.difference > 0][:count]
            lost = [one for one in reversed(changed) if one.difference < 0][:count]
            found += [*gained, *lost]
    return found


def _moved_tables(found: list[QueryChange]) -> list[str]:
    from bge_cocktail.report.text import shortened, text_table

    tables = []
    for task in dict.fromkeys(one.task for one in found):
        rows = []
        for one in (one for one in found if one.task == task):
            text = one.text if isinstance(one.text, str) else " / ".join(one.text)
            if isinstance(one.wanted, list):
                wanted = one.wanted[0]
                said = " to ".join("-" if rank is None else str(rank) for rank in wanted["ranks"])
                shown = f"{wanted['document']}: {wanted['text']}"
            else:
                said, shown = f"{one.said[0]} to {one.said[1]}", str(one.wanted)
            rows.append((f"{100 * one.difference:+.1f}", said, shortened(text), shortened(shown)))
        tables.append(text_table((f"{task}: points", "rank or label", "query or text", "wanted"), rows))
    return tables
