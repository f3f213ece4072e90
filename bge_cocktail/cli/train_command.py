"""``bge-cocktail train``."""

from __future__ import annotations

import json
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
from bge_cocktail.options import Training


@click.command("train")
@click.argument("data", type=PATH)
@click.option("-m", "--model", required=True, help="The model to tune: a folder or a hub name.")
@click.option("--dev", type=PATH, help="Records or a BEIR folder (its dev split) for early stopping.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of a training that was cut off.")
@output_flag
@overwrite_flag
@format_flag
@flags_from(Training)
def command(
    data: Path,
    model: str,
    dev: Path | None,
    resume: bool,
    output: Path,
    overwrite: bool,
    output_format: str,
    **flags: Any,
) -> None:
    """Tune an encoder on records with a contrastive loss.

    DATA is a file of records, a folder that `mine` or `prepare` wrote, or a BEIR folder (its train split).
    """
    from bge_cocktail.provenance import RUN_FILE, refuse_to_replace
    from bge_cocktail.records import read_judged, read_records
    from bge_cocktail.report.table import text_table

    options = options_from(Training, flags)
    refuse_to_replace(output, overwrite, [data, model, *([dev] if dev else [])])
    records = read_records(data)
    judged = read_judged(dev, "dev") if dev is not None else None

    from bge_cocktail.training import train

    try:
        train(model, records, output, options, dev=judged, resume=resume, overwrite=overwrite)
    except KeyboardInterrupt:
        click.echo(f"checkpoints are in {output}.unfinished; the same command with --resume goes on", err=True)
        raise
    described = json.loads((output / RUN_FILE).read_text())
    names = (
        "records",
        "steps",
        "best_step",
        "final_loss",
        "dev_before",
        "dev_best",
        "precision",
        "device",
        "seconds",
    )
    summary = {name: described[name] for name in names}
    rows = [(name.replace("_", " "), _shown(value)) for name, value in summary.items() if value is not None]
    show({"output": str(output), **summary}, text_table(("trained", ""), rows), output_format)


def _shown(value: object) -> str:
    """Metrics with four digits, seconds and the like without what nobody reads."""
    return (
        f"{value:.4f}"
        if isinstance(value, float) and value < 10
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )
