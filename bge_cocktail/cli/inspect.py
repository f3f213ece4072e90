"""``bge-cocktail inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from bge_cocktail.cli.flags import PATH, format_flag, overwrite_flag, show
from bge_cocktail.core.errors import options_as_flags

if TYPE_CHECKING:
    from bge_cocktail.merging.inspect import Inspection

SCREEN = 8


@click.command("inspect")
@click.argument("models", nargs=-1, required=True)
@click.option("--base", help="What the models were tuned from; without it, the first model is the reference.")
@click.option(
    "--pooling",
    type=click.Choice(["cls", "mean", "lasttoken"]),
    help="How plain transformers folders pool, which don't say it.",
)
@click.option("-o", "--output", type=PATH, help="A folder to write: the heat map and all numbers.")
@overwrite_flag
@format_flag
def command(
    models: tuple[str, ...],
    base: str | None,
    pooling: str | None,
    output: Path | None,
    overwrite: bool,
    output_format: str,
) -> None:
    """Say what differs between models, and which of them can be merged.

    Configuration, tokenizer and modules; layer by layer, how far tuning led each model from the base, and whether two
    of them went the same way: cosines of task vectors, and the part of the numbers that were moved to opposite sides.
    """
    from bge_cocktail.merging.inspect import inspect, run_inspect

    if overwrite and output is None:
        raise click.UsageError("--overwrite goes with -o")
    if output is None:
        inspection = inspect(models, base, pooling)
    else:
        inspection = run_inspect(models, output, base=base, pooling=pooling, overwrite=overwrite)
    show(inspection.to_json(), "\n\n".join(_tables(inspection)), output_format, output)


def _tables(inspection: Inspection) -> list[str]:
    from bge_cocktail.merging.inspect import short_names
    from bge_cocktail.report.text import text_table

    short = dict(
        zip(
            [model.model for model in inspection.models],
            short_names([model.model for model in inspection.models]),
            strict=True,
        )
    )
    models = [
        [
            short[model.model],
            f"{model.parameters / 1e6:.1f} M",
            model.dtypes,
            model.modules,
            model.pooling,
            str(model.length or "-"),
            ", ".join(model.prompts) or "-",
            model.tokenizer,
        ]
        for model in inspection.models
    ]
    pairs = [
        [
            f"{short[pair.one]} × {short[pair.other]}",
            _number(pair.cosine),
            _number(pair.agreement),
            _number(pair.conflicts),
            options_as_flags(pair.verdict),
        ]
        for pair in inspection.pairs
    ]
    tables = [
        text_table(("model", "parameters", "type", "modules", "pooling", "tokens", "prompts", "tokenizer"), models),
        text_table(("pair", "cosine", "task vectors", "opposite signs", "verdict"), pairs),
        *(
            f"{short[pair.one]} and {short[pair.other]} can't be merged:\n"
            + "\n".join(f"  {line}" for line in pair.refused[:SCREEN])
            for pair in inspection.pairs
            if pair.refused
        ),
    ]
    if inspection.moved:
        agreement = inspection.agreement
        header = (
            "layer",
            *(f"moved: {name}" for name in inspection.compared),
            *(f"cosine: {pair}" for pair in agreement),
        )
        columns = [*inspection.moved, *agreement.values()]
        rows = [
            [layer, *(_number(column[number]) for column in columns)] for number, layer in enumerate(inspection.layers)
        ]
        tables.append(text_table(header, rows))
    return tables


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
