"""``bge-cocktail classify``: train, predict, evaluate."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import rich_click as click

from bge_cocktail.cli.command_kinds import LazyGroup, ShortHelp
from bge_cocktail.cli.flags import (
    PATH,
    flags_from,
    format_flag,
    numbers,
    options_from,
    output_flag,
    overwrite_flag,
    pairs_of,
    preset_flag,
    refuse_both,
    show,
    source_flags,
)
from bge_cocktail.cli.show import searched_names, show_search, training
from bge_cocktail.core.errors import UsageError
from bge_cocktail.options import ClassifyOptions, PredictOptions

if TYPE_CHECKING:
    from bge_cocktail.training.classifier.evaluate import Judgement
    from bge_cocktail.training.engine.repeat import RepeatedResult

_SHOWN = ("steps", "best_step", "dev_before", "dev_best", "final_loss", "precision", "device", "seconds")


@click.command("train", cls=ShortHelp, finer=("bag", "searched", "trials", "tasks", "folds", "output_format"))
@click.argument("data")
@click.option("-m", "--model", required=True, help="The encoder: a folder or a hub name; a plain BERT, too.")
@click.option("--seeds", callback=numbers, help="Train once with each of these seeds: 1,2,3.")
@click.option("--folds", type=click.IntRange(2), help="Cross-validate over train and dev with so many folds.")
@click.option("--search", "searched", help="Search these options by dev: learning_rate,batch_size,epochs,...")
@click.option("--trials", type=click.IntRange(2), help="Trainings of a search.  [default: 20]")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of a training that was cut off.")
@source_flags
@preset_flag
@output_flag
@overwrite_flag
@format_flag
@flags_from(ClassifyOptions)
def train_command(
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
    from bge_cocktail.core.outputs import refuse_to_replace
    from bge_cocktail.core.runs import RUN_FILE
    from bge_cocktail.data.sources import Source

    refuse_both(resume, overwrite)
    options = options_from(ClassifyOptions, flags)
    refuse_to_replace(output, overwrite, [data, model])

    from bge_cocktail.training.classifier.data import read_class_data, read_test
    from bge_cocktail.training.classifier.repeated_runs import fold_runs, search_classifier, seed_runs, train_runs
    from bge_cocktail.training.classifier.train import train_classifier
    from bge_cocktail.training.engine.processes import is_first_process

    chosen = [flag for flag, given in (("--seeds", seeds), ("--folds", folds), ("--search", searched)) if given]
    if len(chosen) > 1:
        raise UsageError(f"{' or '.join(chosen)}?")
    if trials is not None and not searched:
        raise UsageError("--trials goes with --search")
    source = Source(data, config=config, columns=columns, labels=pairs_of(labels))
    read = read_class_data(source, options)
    kept = f"the study is in {output}.search" if searched else f"it lies in {output}.unfinished"
    if options.few_shot and not searched:
        kept = f"what was tuned is saved beside {output}"
    with training(options.device, kept):
        if searched:
            names = searched_names(searched)
            again: dict[str, Any] = {"trials": trials or 20, "resume": resume, "overwrite": overwrite}
            searched_result = search_classifier(model, read, output, options, names, **again)
            show_search(output, searched_result, names, options.metric, output_format)
            return
        if seeds or folds:
            runs = seed_runs(read, options, seeds) if seeds else fold_runs(read, options, folds or 0)
            test = read_test(source, options, read)
            results = train_runs(model, runs, output, test=test, resume=resume, overwrite=overwrite)
            _show_runs(output, results, output_format)
            return
        names = [source.name]
        train_classifier(model, read, output, options, datasets=names, resume=resume, overwrite=overwrite)
    if is_first_process():
        _show(output, json.loads((output / RUN_FILE).read_text()), options, output_format)


def _show_runs(output: Path, described: RepeatedResult, output_format: str) -> None:
    from bge_cocktail.report.text import text_table

    lines = {**described["runs"], "mean": described["mean"], "spread (sd)": described["spread"]}
    rows = [[name.replace("-", " "), *(f"{value:.4f}" for value in one.values())] for name, one in lines.items()]
    content = {"output": str(output), **{key: value for key, value in described.items() if key != "seconds"}}
    show(content, text_table(("", *described["mean"]), rows), output_format, output)


def _show(output: Path, described: dict[str, Any], options: ClassifyOptions, output_format: str) -> None:
    from bge_cocktail.report.text import text_table

    summary, probe = {name: described[name] for name in _SHOWN}, described.get("probe", {})
    texts, labels = described["texts"], described["labels"]
    named = {"dev_before": f"dev {options.metric} before", "dev_best": f"dev {options.metric}"}
    rows = [
        ("texts", f"{texts['train']} train, {texts['dev']} dev"),
        ("labels", f"{len(labels)}: {', '.join(labels[:6])}{', ...' if len(labels) > 6 else ''}"),
    ]
    for name, value in summary.items():
        if value is None:  # no dev, nothing to judge the start by
            continue
        shown = f"{value:.0f}" if name == "seconds" else f"{value:.4f}" if isinstance(value, float) else str(value)
        rows.append((named.get(name, name.replace("_", " ")), shown))
        if name == "dev_best" and options.metric in probe.get("dev", {}):
            rows.append((f"dev {options.metric} of the probe", f"{probe['dev'][options.metric]:.4f}"))
    for name, value in described.get("test", {}).items():
        beside = f" (probe {probe['test'][name]:.4f})" if name in probe.get("test", {}) else ""
        rows.append((f"test {name}", f"{value:.4f}{beside}"))
    content = {"output": str(output), **summary, "texts": texts, "labels": labels, "test": described.get("test")}
    content["probe"] = probe or None
    then = ("classify", "predict", output, "FILE")
    show(content, text_table(("trained", ""), rows), output_format, output, then)


@click.command("predict")
@click.argument("model")
@click.argument("texts", type=PATH)
@click.option("-o", "--output", type=PATH, help="The file to write; without it, standard output.")
@click.option(
    "--format", "output_format", type=click.Choice(["json", "csv"]), help="[default: csv for FILE.csv, else json]"
)
@click.option("--overwrite", is_flag=True, help="Replace the output file.")
@click.option("--columns", default="", help="Which column is what: text=tweet, or first=question,second=answer.")
@click.option(
    "--escape-formulas",
    is_flag=True,
    help="In CSV, put an apostrophe before cells that a spreadsheet would compute (=, +, -, @).",
)
@flags_from(PredictOptions)
def predict_command(
    model: str,
    texts: Path,
    output: Path | None,
    output_format: str | None,
    overwrite: bool,
    columns: str,
    escape_formulas: bool,
    **flags: Any,
) -> None:
    """Predict the labels of texts, with the cleaning and the longest text of the training.

    TEXTS is a file of any size: JSON Lines, CSV, TSV or Parquet with a column text (premise and hypothesis for
    classifiers of pairs), or plain lines.
    """
    from bge_cocktail.core.errors import DataError, UsageError, near_path
    from bge_cocktail.core.outputs import refuse_to_replace_file

    options = options_from(PredictOptions, flags)
    if texts.is_dir():
        raise UsageError(f"{texts} is a folder; give one of its files")
    if not texts.is_file():
        raise DataError(f"{texts}: no such file.{near_path(str(texts))}")
    if output_format is None:
        output_format = "csv" if output is not None and output.suffix == ".csv" else "json"
    if output is not None:
        refuse_to_replace_file(output, overwrite, [texts, Path(model)])

    from bge_cocktail.training.classifier.model import load_classifier
    from bge_cocktail.training.classifier.predict import as_json, predict_file

    classifier = load_classifier(model, device=options.device)
    settings = classifier.settings
    added = ["predicted", "probabilities"]
    if output_format == "csv":
        added = ["predicted", *(f"p_{label}" for label in settings.labels)]
    names: list[str] = []
    counts: Counter[str] = Counter()
    number = -1
    with _opened(output) as file:
        table = csv.writer(file, lineterminator="\n")
        for number, (where, row, prediction) in enumerate(predict_file(classifier, texts, options, columns)):
            if taken := [name for name in added if name in row]:
                raise DataError(f"{where}: there is a column '{taken[0]}' already; rename it")
            counts.update(prediction.labels)
            if output_format == "json":
                file.write(as_json(row, prediction, settings) + "\n")
                continue
            if not number:
                names = list(row)
                table.writerow([*names, *added])
            if more := [name for name in row if name not in names]:
                raise DataError(
                    f"{where}: the first row has no column '{more[0]}', so CSV has no place for it; take --format json"
                )
            shown = [f"{value:.6f}" for value in prediction.probabilities.tolist()]
            cells = [*(row.get(name, "") for name in names), "|".join(prediction.labels), *shown]
            table.writerow([_no_formula(cell) for cell in cells] if escape_formulas else cells)
        if number < 0:
            raise DataError(f"{texts} holds no texts")
    if output is not None:
        shares = ", ".join(f"{label} {count:,}" for label, count in counts.most_common(6))
        click.echo(f"{output}: {number + 1:,} texts predicted ({shares}{', ...' if len(counts) > 6 else ''})")


def _no_formula(cell: object) -> object:
    """Return a cell that a spreadsheet takes for text: behind an apostrophe where it would be a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


@contextmanager
def _opened(output: Path | None) -> Iterator[IO[str]]:
    from bge_cocktail.core.outputs import new_file

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


@click.command("evaluate")
@click.argument("model")
@click.argument("data")
@click.option("--split", default="test", show_default=True, help="Split of a folder or data set.")
@click.option("--encoder", help="Also judge a probe and nearest neighbours on this encoder's frozen embeddings.")
@source_flags
@output_flag
@overwrite_flag
@format_flag
@flags_from(PredictOptions)
def evaluate_command(
    model: str,
    data: str,
    split: str,
    encoder: str | None,
    config: str | None,
    columns: str,
    labels: str,
    output: Path,
    overwrite: bool,
    output_format: str,
    **flags: Any,
) -> None:
    """Judge a classifier: scores with intervals, each class, confusions, calibration, its surest mistakes.

    DATA is what `classify train` takes; its test split is judged, or a file as it is. Texts whose label is likely
    wrong are named too (confident learning).
    """
    from bge_cocktail.data.sources import Source
    from bge_cocktail.training.classifier.evaluate import run_classifier_evaluate

    source = Source(data, split=split, config=config, columns=columns, labels=pairs_of(labels))
    options = options_from(PredictOptions, flags)
    judged = run_classifier_evaluate(model, source, output, options, encoder=encoder, overwrite=overwrite)
    then = ("report", output, "-o", "report.html")
    show({"output": str(output), **judged}, _text(judged), output_format, output, then)


def _text(judged: Judgement) -> str:
    from bge_cocktail.report.text import text_table

    parts = [f"{judged['count']} texts"]
    rows = [
        [
            f"{score['metric']} of '{score['positive']}'" if "positive" in score else score["metric"],
            f"{score['value']:.4f}",
            f"{score['interval'][0]:.4f} to {score['interval'][1]:.4f}",
        ]
        for score in judged["scores"]
    ]
    for accuracy in judged.get("frozen", []):
        chosen = ", ".join(f"{name}={value:g}" for name, value in accuracy.items() if name in ("C", "k"))
        interval = f"{accuracy['interval'][0]:.4f} to {accuracy['interval'][1]:.4f}"
        rows.append([f"accuracy of the {accuracy['way']} ({chosen})", f"{accuracy['accuracy']:.4f}", interval])
    parts.append(text_table(("score", "value", "95 %"), rows))
    worst = sorted(judged["classes"], key=lambda one: one["F1"])[:12]
    lines = [
        [label["label"], *(f"{label[name]:.4f}" for name in ("precision", "recall", "F1")), str(label["count"])]
        for label in worst
    ]
    parts.append(text_table(("class", "precision", "recall", "F1", "count"), lines))
    if judged.get("confusions"):
        taken = [
            [confusion["label"], confusion["predicted"], str(confusion["count"]), f"{confusion['share']:.1%}"]
            for confusion in judged["confusions"][:6]
        ]
        parts.append(text_table(("label", "taken for", "count", "of its texts"), taken))
    lengths = [[length["words"], str(length["count"]), f"{length['accuracy']:.4f}"] for length in judged["lengths"]]
    parts.append(text_table(("words", "count", "accuracy"), lengths))
    surest = [(mistake["text"], mistake["label"], mistake["predicted"]) for mistake in judged["mistakes"]]
    doubtful = [(error["text"], error["label"], error["likely"]) for error in judged.get("label_errors", [])]
    for title, texts, other in (
        ("surest mistakes", surest, "predicted"),
        (f"doubtful labels ({len(doubtful)} in all)", doubtful, "likely"),
    ):
        if texts:
            shown = [[_short(text), _short(label, 20), _short(guess, 20)] for text, label, guess in texts[:5]]
            parts.append(text_table((title, "label", other), shown))
    return "\n\n".join(parts)


def _short(value: Any, most: int = 70) -> str:
    from bge_cocktail.report.text import shortened

    text = " / ".join(value) if isinstance(value, (list, tuple)) else str(value)
    return shortened(text, most)


COMMANDS = {name: f"bge_cocktail.cli.classify:{name}_command" for name in ("train", "predict", "evaluate")}


@click.group("classify", cls=LazyGroup, homes=COMMANDS)
def command() -> None:
    """Train classifiers on an encoder, judge them, predict with them."""
