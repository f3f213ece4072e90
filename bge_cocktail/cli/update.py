"""``bge-cocktail update``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from bge_cocktail.cli.command_kinds import ShortHelp
from bge_cocktail.cli.flags import (
    PATH,
    flags_from,
    format_flag,
    options_from,
    output_flag,
    overwrite_flag,
    refuse_both,
    show,
)
from bge_cocktail.cli.show import training
from bge_cocktail.options import TrainOptions


@click.command("update", cls=ShortHelp)
@click.argument("model")
@click.argument("data", type=PATH)
@click.option("--old", type=PATH, required=True, help="The records that MODEL was tuned on.")
@click.option("-b", "--base", required=True, help="What MODEL was tuned from: a folder or a hub name.")
@click.option("--core", type=float, default=0.4, show_default=True, help="Share of the old records tuned on again.")
@click.option("--share", type=float, default=0.5, show_default=True, help="Of the newly tuned model in the merge.")
@click.option("--dev", type=PATH, help="Records or a BEIR folder (its dev split) for early stopping.")
@click.option("--general", type=PATH, multiple=True, help="A task that is watched for forgetting (again for more).")
@click.option("--resume", is_flag=True, help="Go on with an update that was cut off.")
@output_flag
@overwrite_flag
@format_flag
@flags_from(TrainOptions)
def command(
    model: str,
    data: Path,
    old: Path,
    base: str,
    core: float,
    share: float,
    dev: Path | None,
    general: tuple[Path, ...],
    resume: bool,
    output: Path,
    overwrite: bool,
    output_format: str,
    **flags: Any,
) -> None:
    """Bring a tuned model up to date with new records, without tuning on all of them again.

    MODEL is in use, DATA are the new records. The base is tuned on them and a core of the old ones, and merged with
    MODEL on the sphere; OUTPUT/updated is the model to use.
    """
    from bge_cocktail.data.record_files import open_records
    from bge_cocktail.data.retrieval import read_retrieval
    from bge_cocktail.report.text import text_table
    from bge_cocktail.training.encoder.update import UPDATED, update

    refuse_both(resume, overwrite)
    options = options_from(TrainOptions, flags)
    judged = read_retrieval(dev, "dev") if dev is not None else None
    with training(options.device, f"it lies in {output}.unfinished"):
        described = update(
            model,
            base,
            open_records(data),
            open_records(old),
            output,
            options,
            core=core,
            share=share,
            dev=judged,
            general=general,
            resume=resume,
            overwrite=overwrite,
        )
    records = described["records"]
    rows = [
        ("new records", str(records["new"])),
        ("old records", f"{records['old']} of {records['all_old']}"),
        ("steps", str(described["steps"])),
        ("seconds", f"{described['seconds']:.0f}"),
        ("model to use", str(output / UPDATED)),
    ]
    content = {"output": str(output / UPDATED), "records": records, "steps": described["steps"]}
    then = ("evaluate", model, output / UPDATED, "--target", "DATA", "-o", "FOLDER")
    show(content, text_table(("updated", ""), rows), output_format, output, then)
