"""``bge-cocktail mine``."""

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
    preset_flag,
    show,
)
from bge_cocktail.options import EncodeOptions, MineOptions


@click.command("mine", cls=ShortHelp)
@click.argument("data", type=PATH)
@click.option("-m", "--model", required=True, help="Encoder that ranks the documents: a folder or a hub name.")
@click.option("--corpus", type=PATH, help="Documents to mine from: JSON Lines with 'text', or a BEIR folder.")
@click.option("--split", default="train", show_default=True, help="Split of a folder.")
@click.option(
    "--qrels", type=PATH, multiple=True, help="A BEIR folder whose judgements tell false negatives. Repeatable."
)
@click.option("--audit", type=click.IntRange(min=0), default=0, help="Show the decisions for so many queries.")
@preset_flag
@output_flag
@overwrite_flag
@format_flag
@flags_from(MineOptions, EncodeOptions)
def command(
    data: Path,
    model: str,
    corpus: Path | None,
    split: str,
    qrels: tuple[Path, ...],
    audit: int,
    output: Path,
    overwrite: bool,
    output_format: str,
    **flags: Any,
) -> None:
    """Find hard negatives for records.

    DATA is a file of records (JSON Lines with query and pos), a folder that `prepare` wrote, or a BEIR folder; the
    corpus of a folder is then mined.
    """
    from bge_cocktail.mining.miner import run_mine
    from bge_cocktail.report.text import audit_text, text_table

    run = run_mine(
        data,
        model,
        output,
        options_from(MineOptions, flags),
        options_from(EncodeOptions, flags),
        corpus=corpus,
        split=split,
        judgements=qrels,
        audit=audit,
        overwrite=overwrite,
    )
    rows = [(name.replace("_", " "), str(value)) for name, value in run.summary.items() if name != "dropped"]
    rows += [
        ("candidates beyond those needed" if reason == "not needed" else f"dropped: {reason}", str(count))
        for reason, count in run.mined.dropped.items()
    ]
    tables = [text_table(("mined", "count"), rows), *map(audit_text, run.mined.audits)]
    if run.wrong is not None:
        share = f"{run.wrong.relevant} of {run.wrong.negatives} negatives are judged relevant: {run.wrong.rate:.2%}"
        tables.append(f"{share} (judgements are never complete: at least so many are false)")
    decisions = [decided.to_json() for decided in run.mined.audits]
    content = {"output": str(output), **run.summary, "audit": decisions}
    show(content, "\n\n".join(tables), output_format, output, ("train", output, "-m", model, "-o", "FOLDER"))
