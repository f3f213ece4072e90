"""``bge-cocktail classify evaluate``."""

from __future__ import annotations

import time
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
from bge_cocktail.options import Classifying, Evaluating, Predicting

JUDGEMENT_FILE = "judgement.json"


@click.command("evaluate")
@click.argument("model")
@click.argument("data")
@click.option("--split", default="test", show_default=True, help="Split of a folder or data set.")
@click.option("--encoder", help="Also judge a probe and nearest neighbours on this encoder's frozen embeddings.")
@source_flags
@output_flag
@overwrite_flag
@format_flag
@flags_from(Predicting)
def command(
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
    from dataclasses import replace

    from bge_cocktail.errors import UsageError
    from bge_cocktail.outputs import new_folder, refuse_to_replace, write_json
    from bge_cocktail.preparing import Source
    from bge_cocktail.provenance import RUN_FILE, describe_run, hash_path

    options = options_from(Predicting, flags)
    refuse_to_replace(output, overwrite, [data, model])
    if encoder is not None and (Path(data).is_file() or split in ("train", "dev")):
        raise UsageError("--encoder learns from train and chooses by dev: judge the test of a folder or data set")

    from bge_cocktail.classifying import judge_classifier, load_classifier, number_labels, read_class_data, read_split
    from bge_cocktail.classifying.data import check_form
    from bge_cocktail.hub import model_folder

    started = time.monotonic()
    classifier = load_classifier(model, device=options.device)
    settings = classifier.settings
    if encoder is not None and settings.multi_label:
        raise UsageError("--encoder: probe and nearest neighbours give a text one label, this classifier any number")
    source = Source(data, split=split, config=config, columns=columns, labels=pairs_of(labels))
    rows = read_split(source, settings.clean)
    judged_on = number_labels(rows, settings.labels, settings.multi_label, f"{data} ({split})")
    check_form(judged_on.texts, settings.pairs, f"{data} ({split})")
    judged = judge_classifier(classifier, judged_on, options)
    if encoder is not None:
        chosen = Classifying(clean=settings.clean, multi_label=settings.multi_label)
        known = read_class_data(replace(source, split="train"), chosen, settings.labels)
        judged["frozen"] = _frozen(encoder, known.train, known.dev, judged_on, options)
    inputs = {model: hash_path(model_folder(model)), data: hash_path(source.path) if source.path.exists() else ""}
    with new_folder(output, overwrite=overwrite) as new:
        write_json(new / JUDGEMENT_FILE, judged)
        seconds = time.monotonic() - started
        described = describe_run(
            "classify evaluate", options=options.model_dump(mode="json"), inputs=inputs, seconds=seconds
        )
        write_json(new / RUN_FILE, described)
    show({"output": str(output), **judged}, _text(judged), output_format)


def _frozen(encoder: str, train: Any, dev: Any, judged_on: Any, options: Predicting) -> list[dict[str, Any]]:
    import numpy as np

    from bge_cocktail.classifying.frozen import nearest_neighbours, probe
    from bge_cocktail.encoding import CachedEncoder
    from bge_cocktail.options import Encoding
    from bge_cocktail.statistics import bootstrap_interval

    embeds = CachedEncoder(encoder, Encoding(device=options.device))
    truth = np.array([own[0] for own in judged_on.labels])
    found = []
    for name, made in (
        ("probe", probe(embeds, train, dev, judged_on.texts)),
        ("nearest neighbours", nearest_neighbours(embeds, train, dev, judged_on.texts)),
    ):
        right = (made.pop("predicted") == truth).astype(float)
        interval = bootstrap_interval(right, seed=Evaluating().seed)
        found.append({"way": name, "accuracy": float(right.mean()), "interval": interval, **made})
    return found


def _text(judged: dict[str, Any]) -> str:
    from bge_cocktail.report.table import text_table

    parts = [f"{judged['count']} texts"]
    rows = [
        [
            f"{score['metric']} of '{score['positive']}'" if "positive" in score else score["metric"],
            f"{score['value']:.4f}",
            f"{score['interval'][0]:.4f} to {score['interval'][1]:.4f}",
        ]
        for score in judged["scores"]
    ]
    for one in judged.get("frozen", []):
        chosen = ", ".join(f"{name}={value:g}" for name, value in one.items() if name in ("C", "k"))
        interval = f"{one['interval'][0]:.4f} to {one['interval'][1]:.4f}"
        rows.append([f"accuracy of the {one['way']} ({chosen})", f"{one['accuracy']:.4f}", interval])
    parts.append(text_table(("score", "value", "95 %"), rows))
    worst = sorted(judged["classes"], key=lambda one: one["F1"])[:12]
    lines = [
        [one["label"], *(f"{one[name]:.4f}" for name in ("precision", "recall", "F1")), str(one["count"])]
        for one in worst
    ]
    parts.append(text_table(("class", "precision", "recall", "F1", "count"), lines))
    if judged.get("confusions"):
        taken = [
            [one["label"], one["predicted"], str(one["count"]), f"{one['share']:.1%}"]
            for one in judged["confusions"][:6]
        ]
        parts.append(text_table(("label", "taken for", "count", "of its texts"), taken))
    lengths = [[one["words"], str(one["count"]), f"{one['accuracy']:.4f}"] for one in judged["lengths"]]
    parts.append(text_table(("words", "count", "accuracy"), lengths))
    for title, key, other in (
        ("surest mistakes", "mistakes", "predicted"),
        ("doubtful labels", "label_errors", "likely"),
    ):
        if judged.get(key):
            shown = [[_short(one["text"]), _short(one["label"], 20), _short(one[other], 20)] for one in judged[key][:5]]
            count = f" ({len(judged[key])} in all)" if key == "label_errors" else ""
            parts.append(text_table((title + count, "label", other), shown))
    return "\n\n".join(parts)


def _short(value: Any, most: int = 70) -> str:
    from bge_cocktail.report.table import shortened

    text = " / ".join(value) if isinstance(value, (list, tuple)) else str(value)
    return shortened(text, most)
