"""``bge-cocktail evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from bge_cocktail.cli.flags import (
    PATH,
    flags_from,
    format_flag,
    options_from,
    output_flag,
    overwrite_flag,
    show,
)
from bge_cocktail.options import Encoding, Evaluating


@click.command("evaluate")
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--target",
    type=PATH,
    multiple=True,
    help="A task tuned for: a BEIR folder or labelled texts. Repeatable.",
)
@click.option("--general", type=PATH, multiple=True, help="A task that must not get worse. Repeatable.")
@output_flag
@overwrite_flag
@format_flag
@flags_from(Evaluating, Encoding)
def command(
    models: tuple[str, ...],
    target: tuple[Path, ...],
    general: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    output_format: str,
    **flags: Any,
) -> None:
    """Judge models on target and general tasks.

    MODELS are folders or hub names; NAME=FOLDER gives one a name in the table.
    """
    from bge_cocktail.errors import UsageError
    from bge_cocktail.evaluation import evaluate_models, evaluation_inputs, open_tasks, write_evaluation
    from bge_cocktail.hub import model_folder
    from bge_cocktail.provenance import refuse_to_replace
    from bge_cocktail.report.table import score_table

    evaluating = options_from(Evaluating, flags)
    encoding = options_from(Encoding, flags)
    named: dict[str, str] = {}
    for model in models:
        name, equals, path = model.partition("=")
        if not equals or Path(model).is_dir():
            name, path = model.rstrip("/").rsplit("/", 1)[-1], model
        if name in named:
            raise UsageError(f"two models are called '{name}'; give them names: NAME=FOLDER")
        model_folder(path)
        named[name] = path
    refuse_to_replace(output, overwrite, [*named.values(), *target, *general])
    task_list = open_tasks(target, general)
    results = write_evaluation(
        output,
        lambda: evaluate_models(named, task_list, encoding, evaluating),
        {"evaluate": evaluating.model_dump(mode="json"), "encode": encoding.model_dump(mode="json")},
        evaluation_inputs(named, task_list, evaluating),
    )
    show({"models": [result.to_json() for result in results]}, score_table(results), output_format)
