"""``bge-cocktail classify predict``."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import rich_click as click

from bge_cocktail.cli.flags import PATH, flags_from, options_from, overwrite_flag
from bge_cocktail.options import Predicting


@click.command("predict")
@click.argument("model")
@click.argument("texts", type=PATH)
@click.option("-o", "--output", type=PATH, help="The file to write; without it, standard output.")
@click.option("--format", "output_format", type=click.Choice(["json", "csv"]), default="json", show_default=True)
@overwrite_flag
@flags_from(Predicting)
def command(model: str, texts: Path, output: Path | None, output_format: str, overwrite: bool, **flags: Any) -> None:
    """Predict the labels of texts, with the cleaning and the longest text of the training.

    TEXTS is a file of any size: JSON Lines, CSV, TSV or Parquet with a column text (premise and hypothesis for
    classifiers of pairs), or plain lines.
    """
    from bge_cocktail.errors import DataError, UsageError

    options = options_from(Predicting, flags)
    if not texts.is_file():
        raise DataError(f"{texts}: no such file")
    if output is not None and output.exists() and not overwrite:
        raise UsageError(f"{output} exists; choose another file, or --overwrite")

    from bge_cocktail.classifying import load_classifier, predict_file
    from bge_cocktail.classifying.predicting import as_json

    classifier = load_classifier(model, device=options.device)
    settings = classifier.settings
    with _opened(output) as file:
        table = csv.writer(file, lineterminator="\n")
        for number, (row, found) in enumerate(predict_file(classifier, texts, options)):
            if output_format == "json":
                file.write(as_json(row, found, settings) + "\n")
                continue
            if not number:
                names = list(row)
                table.writerow([*names, "predicted", *(f"p_{label}" for label in settings.labels)])
            shown = [f"{value:.6f}" for value in found.probabilities.tolist()]
            table.writerow([*(row.get(name, "") for name in names), "|".join(found.labels), *shown])


@contextmanager
def _opened(output: Path | None) -> Iterator[IO[str]]:
    from bge_cocktail.provenance import new_file

    if output is None:
        yield sys.stdout
        return
    with new_file(output) as working, working.open("w", encoding="utf-8", newline="") as file:
        yield file
