"""``bge-cocktail inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from bge_cocktail.cli.flags import PATH, format_flag, overwrite_flag, show

if TYPE_CHECKING:
    from bge_cocktail.merging.inspect import Comparison

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
    from bge_cocktail.merging.inspect import inspect

    found = inspect(models, base, pooling)
    if overwrite and output is None:
        raise click.UsageError("--overwrite goes with -o")
    if output is not None:
        _write(found, output, [*([base] if base else []), *models], overwrite)
    show(found.to_json(), "\n\n".join(_tables(found)), output_format)


def _tables(found: Comparison) -> list[str]:
    from bge_cocktail.merging.inspect import short_names
    from bge_cocktail.report.text import text_table

    short = dict(
        zip([one.model for one in found.models], short_names([one.model for one in found.models]), strict=True)
    )
    models = [
        [
            short[one.model],
            f"{one.parameters / 1e6:.1f} M",
            one.dtypes,
            one.modules,
            one.pooling,
            str(one.length or "-"),
            ", ".join(one.prompts) or "-",
            one.tokenizer,
        ]
        for one in found.models
    ]
    pairs = [
        [
            f"{short[one.one]} × {short[one.other]}",
            _number(one.cosine),
            _number(one.agreement),
            _number(one.conflicts),
            one.verdict,
        ]
        for one in found.pairs
    ]
    tables = [
        text_table(("model", "parameters", "type", "modules", "pooling", "tokens", "prompts", "tokenizer"), models),
        text_table(("pair", "cosine", "task vectors", "opposite signs", "verdict"), pairs),
        *(
            f"{short[one.one]} and {short[one.other]} can't be merged:\n"
            + "\n".join(f"  {line}" for line in one.refused[:SCREEN])
            for one in found.pairs
            if one.refused
        ),
    ]
    if found.moved:
        agreement = found.agreement
        header = ("layer", *(f"moved: {name}" for name in found.compared), *(f"cosine: {pair}" for pair in agreement))
        columns = [*found.moved, *agreement.values()]
        rows = [[layer, *(_number(column[number]) for column in columns)] for number, layer in enumerate(found.layers)]
        tables.append(text_table(header, rows))
    return tables


def _write(found: Comparison, output: Path, names: list[str], overwrite: bool) -> None:
    import time

    from bge_cocktail.core.outputs import new_folder, refuse_to_replace, write_json
    from bge_cocktail.core.runs import RUN_FILE, describe_run, hash_path
    from bge_cocktail.models.folder import model_folder
    from bge_cocktail.report.pictures import draw_heatmap

    started = time.monotonic()
    folders = {name: model_folder(name) for name in names}
    refuse_to_replace(output, overwrite, folders.values())
    with new_folder(output, overwrite=overwrite) as new:
        write_json(new / "inspect.json", found.to_json())
        if found.moved:
            parts = [
                ("How far from the reference, in % of its length", found.compared, found.moved, "size"),
                ("Cosine of task vectors", list(found.agreement), list(found.agreement.values()), "cosine"),
                (
                    "Part of the numbers moved to opposite sides",
                    list(found.conflicts),
                    list(found.conflicts.values()),
                    "share",
                ),
            ]
            draw_heatmap(found.layers, parts, new / "heatmap.png")
        inputs = {name: hash_path(folder) for name, folder in folders.items()}
        seconds = time.monotonic() - started
        write_json(new / RUN_FILE, describe_run("inspect", options={}, inputs=inputs, seconds=seconds))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
