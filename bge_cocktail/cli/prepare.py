"""``bge-cocktail prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from bge_cocktail.cli.command_kinds import ShortHelp
from bge_cocktail.cli.flags import (
    flags_from,
    format_flag,
    options_from,
    output_flag,
    overwrite_flag,
    pairs_of,
    preset_flag,
    show,
)
from bge_cocktail.options import EncodeOptions, PrepareOptions


@click.command("prepare", cls=ShortHelp)
@click.argument("sources", nargs=-1, required=True)
@click.option("-m", "--model", help="Encoder for tokens, semantic duplicates and difficulty: a folder or a hub name.")
@click.option("--split", default="train", show_default=True, help="Split of a folder or data set.")
@click.option("--config", help="Configuration of a data set of the hub.")
@click.option(
    "--columns",
    default="",
    help="Which column is what: query=question,pos=answer,neg=a+b; or text and label; ...",
)
@click.option("--labels", default="", help="Names for labels: 0=negative,1=positive.")
@click.option(
    "--scale",
    type=click.FloatRange(min=0, min_open=True),
    help="What scores and ratings are divided by.",
)
@click.option(
    "--against",
    multiple=True,
    help="A test set that must not stand in train (of a folder: its test split).",
)
@preset_flag
@output_flag
@overwrite_flag
@format_flag
@flags_from(PrepareOptions, EncodeOptions)
def command(
    sources: tuple[str, ...],
    model: str | None,
    split: str,
    config: str | None,
    columns: str,
    labels: str,
    scale: float | None,
    against: tuple[str, ...],
    output: Path,
    overwrite: bool,
    output_format: str,
    **flags: Any,
) -> None:
    """Clean, de-duplicate, split and check data.

    SOURCES are files (JSON Lines, CSV, TSV, Parquet; plain, gzip or zstd), folders of such files named by split, BEIR
    folders, known data sets by their short name (sst2, mnli, imdb, stsb, qqp, quora, msmarco, nli, banking77, ag_news,
    dureader, t2ranking), or data sets of the hub (owner/name).
    """
    from bge_cocktail.data.sources import Source
    from bge_cocktail.preparing.prepare import prepare
    from bge_cocktail.report.build import data_page
    from bge_cocktail.report.sections.data import data_text

    preparing, encoding = options_from(PrepareOptions, flags), options_from(EncodeOptions, flags)
    one = Source("", split, config, columns, pairs_of(labels), scale)
    report = prepare(
        [Source(**{**vars(one), "name": name}) for name in sources],
        output,
        preparing,
        against=[Source(**{**vars(one), "name": name, "split": "test"}) for name in against],
        model=model,
        encoding=encoding,
        overwrite=overwrite,
        page=lambda content: data_page(content, f"Data of {', '.join(Path(name).name for name in sources)}"),
    )
    then = ("mine", output, "-m", "MODEL", "-o", "FOLDER")
    show({"output": str(output), **report}, data_text(report), output_format, output, then)
