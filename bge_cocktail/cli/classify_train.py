"""``bge-cocktail classify train``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import rich_click as click

from bge_cocktail.cli.flags import (
    flags_from,
    format_flag,
    options_from,
    output_flag,
    overwrite_flag,
    pairs_of,
    show,
    source_flags,
)
from bge_cocktail.options import Classifying

_SHOWN = ("steps", "best_step", "dev_before", "dev_best", "final_loss", "precision", "device", "seconds")


@click.command("train")
@click.argument("data")
@click.option("-m", "--model", required=True, help="The encoder: a folder or a hub name; a plain BERT, too.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of a training that was cut off.")
@source_flags
@output_flag
@overwrite_flag
@format_flag
@flags_from(Classifying)
def command(
    data: str,
    model: str,
    resume: bool,
    config: str | None,
    columns: str,
    labels: str,
    output: Path,
    overwrite: bool,
    output_format: str,
    **flags: Any,
) -> None:
    """Give an encoder a classification head and tune both.

    DATA is a folder with train and dev (JSON Lines, CSV, TSV or Parquet with text and label, or premise, hypothesis and
    label), one such file, which is split 7:2:1, or a known data set (sst2, mnli, imdb, banking77, ag_news).
    """
    from bge_cocktail.preparing import Source
    from bge_cocktail.provenance import RUN_FILE, refuse_to_replace

    options = options_from(Classifying, flags)
    refuse_to_replace(output, overwrite, [data, model])

    from bge_cocktail.classifying import read_class_data, train_classifier
    from bge_cocktail.training import Interrupted, is_first_process

    read = read_class_data(Source(data, config=config, columns=columns, labels=pairs_of(labels)), options)
    try:
        train_classifier(model, read, output, options, resume=resume, overwrite=overwrite)
    except Interrupted:
        click.echo(f"the last step is saved in {output}.unfinished; the same command with --resume goes on", err=True)
        raise
    if is_first_process():
        _show(output, json.loads((output / RUN_FILE).read_text()), options, output_format)


def _show(output: Path, described: dict[str, Any], options: Classifying, output_format: str) -> None:
    from bge_cocktail.report.table import text_table

    summary = {name: described[name] for name in _SHOWN}
    texts, labels = described["texts"], described["labels"]
    named = {"dev_before": f"dev {options.metric} before", "dev_best": f"dev {options.metric}"}
    rows = [
        ("texts", f"{texts['train']} train, {texts['dev']} dev"),
        ("labels", f"{len(labels)}: {', '.join(labels[:6])}{', ...' if len(labels) > 6 else ''}"),
    ]
    for name, value in summary.items():
        shown = f"{value:.0f}" if name == "seconds" else f"{value:.4f}" if isinstance(value, float) else str(value)
        rows.append((named.get(name, name.replace("_", " ")), shown))
    for name, value in described.get("test", {}).items():
        rows.append((f"test {name}", f"{value:.4f}"))
    content = {"output": str(output), **summary, "texts": texts, "labels": labels, "test": described.get("test")}
    show(content, text_table(("trained", ""), rows), output_format)
