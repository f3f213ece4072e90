"""``bge-cocktail classify predict``."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import rich_click as click

from bge_cocktail.cli.flags import PATH, flags_from, options_from
from bge_cocktail.options import Predicting


@click.command("predict")
@click.argument("model")
@click.argument("texts", type=PATH)
@click.option("-o", "--output", type=PATH, help="The file to write; without it, standard output.")
@click.option(
    "--format", "output_format", type=click.Choice(["json", "csv"]), help="[default: csv for FILE.csv, else json]"
)
@click.option("--overwrite", is_flag=True, help="Replace the output file.")
@click.option("--columns", default="", help="Which column is what: text=tweet, or first=question,second=answer.")
@flags_from(Predicting)
def command(
    model: str,
    texts: Path,
    output: Path | None,
    output_format: str | None,
    overwrite: bool,
    columns: str,
    **flags: Any,
) -> None:
    """Predict the labels of texts, with the cleaning and the longest text of the training.

    TEXTS is a file of any size: JSON Lines, CSV, TSV or Parquet with a column text (premise and hypothesis for
    classifiers of pairs), or plain lines.
    """
    from bge_cocktail.errors import DataError, UsageError, near_path
    from bge_cocktail.outputs import refuse_nested

    options = options_from(Predicting, flags)
    if texts.is_dir():
        raise UsageError(f"{texts} is a folder; give one of its files")
    if not texts.is_file():
        raise DataError(f"{texts}: no such file.{near_path(str(texts))}")
    if output_format is None:
        output_format = "csv" if output is not None and output.suffix == ".csv" else "json"
    if output is not None:
        refuse_nested(output, [one for one in (texts, Path(model)) if one.exists()])
        if output.is_dir():
            raise UsageError(f"{output} is a folder; the output is a file")
        if output.exists() and not overwrite:
            raise UsageError(f"{output} exists; choose another file, or --overwrite")

    from bge_cocktail.classifying import load_classifier, predict_file
    from bge_cocktail.classifying.predicting import as_json

    classifier = load_classifier(model, device=options.device)
    settings = classifier.settings
    added = ["predicted", "probabilities"]
    if output_format == "csv":
        added = ["predicted", *(f"p_{label}" for label in settings.labels)]
    names: list[str] = []
    number = -1
    with _opened(output) as file:
        table = csv.writer(file, lineterminator="\n")
        for number, (where, row, found) in enumerate(predict_file(classifier, texts, options, columns)):
            if taken := [name for name in added if name in row]:
                raise DataError(f"{where}: there is a column '{taken[0]}' already; rename it")
            if output_format == "json":
                file.write(as_json(row, found, settings) + "\n")
                continue
            if not number:
                names = list(row)
                table.writerow([*names, *added])
            if more := [name for name in row if name not in names]:
                raise DataError(
                    f"{where}: the first row has no column '{more[0]}', so CSV has no place for it; take --format json"
                )
            shown = [f"{value:.6f}" for value in found.probabilities.tolist()]
            table.writerow([*(row.get(name, "") for name in names), "|".join(found.labels), *shown])
        if number < 0:
            raise DataError(f"{texts} holds no texts")


@contextmanager
def _opened(output: Path | None) -> Iterator[IO[str]]:
    from bge_cocktail.outputs import new_file

    # half of a character, which a column may hold, is written as JSON writes it
    if output is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        yield sys.stdout
        return
    with (
        new_file(output) as working,
        working.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file
