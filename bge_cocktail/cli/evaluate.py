"""``bge-cocktail evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bge_cocktail.cli.command_kinds import ShortHelp
from bge_cocktail.cli.flags import (
    flags_from,
    format_flag,
    options_from,
    output_flag,
    overwrite_flag,
    plugin_flag,
    preset_flag,
    show,
)
from bge_cocktail.options import EncodeOptions, EvaluateOptions

if TYPE_CHECKING:
    from bge_cocktail.evaluating.mteb import Submission


@click.command("evaluate", cls=ShortHelp, finer=("model_name", "revision", "languages", "model_license"))
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--target",
    multiple=True,
    metavar="[KIND:]FOLDER",
    help="A task tuned for: a BEIR folder, labelled texts, ... (clustering:FOLDER says the kind). Repeatable.",
)
@click.option("--general", multiple=True, metavar="[KIND:]FOLDER", help="A task that must not get worse. Repeatable.")
@click.option(
    "--mteb",
    multiple=True,
    metavar="NAME",
    help="A task or benchmark of mteb, or a folder judged by mteb's own code and protocol. Repeatable.",
)
@click.option("--model-name", metavar="OWNER/NAME", help="The model's name on the hub, for results to be handed in.")
@click.option("--revision", help="Its commit there.")
@click.option("--language", "languages", multiple=True, metavar="CODE", help="One it is for: eng-Latn. Repeatable.")
@click.option("--license", "model_license", metavar="NAME", help="Its licence: mit, apache-2.0, ...")
@click.option(
    "--card", is_flag=True, help="Put the scores into the model cards of MODELS that are folders, beside the first's."
)
@preset_flag
@output_flag
@overwrite_flag
@format_flag
@plugin_flag
@flags_from(EvaluateOptions, EncodeOptions)
def command(
    models: tuple[str, ...],
    target: tuple[str, ...],
    general: tuple[str, ...],
    mteb: tuple[str, ...],
    model_name: str | None,
    revision: str | None,
    languages: tuple[str, ...],
    model_license: str | None,
    card: bool,
    output: Path,
    overwrite: bool,
    output_format: str,
    **flags: Any,
) -> None:
    """Judge models on target and general tasks.

    MODELS are folders or hub names; NAME=FOLDER gives one a name in the table. The first is what the others are
    compared with.
    """
    from bge_cocktail.evaluating.compare import compare
    from bge_cocktail.evaluating.evaluate import run_evaluate
    from bge_cocktail.report.text import score_table

    results = run_evaluate(
        models,
        output,
        options_from(EvaluateOptions, flags),
        options_from(EncodeOptions, flags),
        target=target,
        general=general,
        mteb=mteb,
        submission=_submission(model_name, revision, languages, model_license),
        card=card,
        overwrite=overwrite,
    )
    several = ("compare", output) if target or general else ("leaderboard", output)
    then = several if len(results) > 1 else ("report", output, "-o", "report.html")
    comparison = compare([output], partial=True) if len(results) > 1 else None
    table = score_table(results, comparison)
    show({"models": [result.to_json() for result in results]}, table, output_format, output, then)


def _submission(
    name: str | None, revision: str | None, languages: tuple[str, ...], model_license: str | None
) -> Submission | None:
    """Return what is said of the model to mteb's leaderboard, if anything is."""
    from bge_cocktail.core.errors import UsageError
    from bge_cocktail.evaluating.mteb import Submission

    if name is None and revision is None:
        if languages or model_license:
            raise UsageError("--language and --license go with --model-name and --revision")
        return None
    if name is None or revision is None:
        raise UsageError("--model-name and --revision go together: mteb's results lie in folders of both")
    return Submission(name, revision, languages, model_license)
