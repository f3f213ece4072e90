"""``bge-cocktail classify train``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import rich_click as click

from bge_cocktail.cli.flags import (
    flags_from,
    format_flag,
    numbers,
    options_from,
    output_flag,
    overwrite_flag,
    pairs_of,
    show,
    source_flags,
)
from bge_cocktail.cli.searches import searched_names, show_search
from bge_cocktail.errors import UsageError
from bge_cocktail.options import Classifying

_SHOWN = ("steps", "best_step", "dev_before", "dev_best", "final_loss", "precision", "device", "seconds")


@click.command("train")
@click.argument("data")
@click.option("-m", "--model", required=True, help="The encoder: a folder or a hub name; a plain BERT, too.")
@click.option("--seeds", callback=numbers, help="Train once with each of these seeds: 1,2,3.")
@click.option("--folds", type=click.IntRange(2), help="Cross-validate over train and dev with so many folds.")
@click.option("--search", "searched", help="Search these options by dev: learning_rate,batch_size,epochs,...")
@click.option("--trials", type=click.IntRange(2), help="Trainings of a search.  [default: 20]")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of a training that was cut off.")
@source_flags
@output_flag
@overwrite_flag
@format_flag
@flags_from(Classifying)
def command(
    data: str,
    model: str,
    seeds: list[int] | None,
    folds: int | None,
    searched: str | None,
    trials: int | None,
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
    from bge_cocktail.outputs import refuse_to_replace
    from bge_cocktail.preparing import Source
    from bge_cocktail.provenance import RUN_FILE

    options = options_from(Classifying, flags)
    refuse_to_replace(output, overwrite, [data, model])

    from bge_cocktail.classifying import (
        fold_runs,
        read_class_data,
        read_test,
        search_classifier,
        seed_runs,
        train_classifier,
        train_runs,
    )
    from bge_cocktail.training import Interrupted, is_first_process

    chosen = [flag for flag, given in (("--seeds", seeds), ("--folds", folds), ("--search", searched)) if given]
    if len(chosen) > 1:
        raise UsageError(f"{' or '.join(chosen)}?")
    if trials is not None and not searched:
        raise UsageError("--trials goes with --search")
    source = Source(data, config=config, columns=columns, labels=pairs_of(labels))
    read = read_class_data(source, options)
    try:
        if searched:
            names = searched_names(searched)
            again: dict[str, Any] = {"trials": trials or 20, "resume": resume, "overwrite": overwrite}
            found = search_classifier(model, read, output, options, names, **again)
            show_search(output, found, names, options.metric, output_format)
            return
        if seeds or folds:
            runs = seed_runs(read, options, seeds) if seeds else fold_runs(read, options, folds or 0)
            test = read_test(source, options, read)
            found = train_runs(model, runs, output, test=test, resume=resume, overwrite=overwrite)
            _show_runs(output, found, output_format)
            return
        train_classifier(model, read, output, options, resume=resume, overwrite=overwrite)
    except Interrupted:
        kept = f"the study is in {output}.search" if searched else f"the last step is saved in {output}.unfinished"
        if options.few_shot and not searched:
            kept = f"what was tuned is saved beside {output}"
        click.echo(f"{kept}; the same command with --resume goes on", err=True)
        raise
    if is_first_process():
        _show(output, json.loads((output / RUN_FILE).read_text()), options, output_format)


def _show_runs(output: Path, described: dict[str, Any], output_format: str) -> None:
    from bge_cocktail.report.table import text_table

    lines = {**described["runs"], "mean": described["mean"], "spread (sd)": described["spread"]}
    rows = [[name.replace("-", " "), *(f"{value:.4f}" for value in one.values())] for name, one in lines.items()]
    content = {"output": str(output), **{key: described[key] for key in ("runs", "mean", "spread")}}
    show(content, text_table(("", *described["mean"]), rows), output_format)


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
