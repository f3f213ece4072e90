"""Ways to classify with one encoder: probe, nearest neighbours, tuned heads, few texts; several sets and seeds.

    .venv/bin/python scripts/compare_classifiers.py --data DIR [--sets sst2,mnli,imdb] [--texts 2000] [--seeds 1,2,3]

MiniLM on the sets of --data (classification/NAME). Tuned heads see a seeded draw of --texts of train, so that a run
takes minutes on two cores; the few-text ways see 8 and 64 of each class (not for pairs). Texts are cut at 128 tokens.
Probe and nearest neighbours choose C and k on dev. Prints a Markdown table of test accuracy, mean and standard
deviation over the seeds where there is something to seed, and one JSON line. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measuring import into_docs

from bge_cocktail.data.labelled import LabelledTexts
from bge_cocktail.data.sources import Source
from bge_cocktail.flow.demo import demo_model
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.options import ClassifyOptions, EncodeOptions, PredictOptions
from bge_cocktail.training.classifier.data import ClassifierData, read_class_data, read_test
from bge_cocktail.training.classifier.evaluate import nearest_neighbours, probe
from bge_cocktail.training.classifier.model import load_classifier
from bge_cocktail.training.classifier.predict import predict
from bge_cocktail.training.classifier.train import train_classifier

MAX_LENGTH = 128
COMMON: dict[str, Any] = {"max_length": MAX_LENGTH, "learning_rate": 5e-5, "epochs": 3}
FEW: dict[str, Any] = {**COMMON, "few_shot": True, "epochs": 1, "learning_rate": 2e-5}
WAYS: dict[str, dict[str, Any]] = {
    "head on [CLS]": {**COMMON, "head": "cls", "head_start": "random"},
    "head on the pooled embedding": {**COMMON, "head": "pooled", "head_start": "random"},
    "few-shot, 8 a class": {**FEW, "per_class": 8},
    "few-shot, 64 a class": {**FEW, "per_class": 64, "pairs_per_text": 5},
}


def drawn(data: ClassifierData, count: int) -> ClassifierData:
    """The data with a draw of train."""
    rows = np.random.default_rng(0).permutation(len(data.train))[:count]
    return replace(data, train=data.train.at(sorted(rows.tolist())))


def accuracy(model: Path, test: LabelledTexts) -> float:
    """Share of the test's texts that are predicted right."""
    classifier = load_classifier(model)
    found = predict(classifier, test.texts, PredictOptions())
    names = [classifier.settings.labels[own[0]] for own in test.labels]
    return float(np.mean([one.labels == (name,) for one, name in zip(found, names, strict=True)]))


def measure(path: Path, texts: int, seeds: list[int], folder: Path) -> dict[str, list[float]]:
    """Test accuracy of every way, of each seed."""
    source, plain = Source(str(path)), ClassifyOptions.model_validate(COMMON)
    data = read_class_data(source, plain)
    test = read_test(source, plain, data)
    if test is None:
        raise SystemExit(f"{path} has no test split")
    encoder = CachedEncoder(demo_model(), EncodeOptions(max_length=MAX_LENGTH, cache_dir=folder / "cache"))
    truth = np.array([own[0] for own in test.labels])
    found = {}
    for way, learner in (("probe", probe), ("nearest neighbours", nearest_neighbours)):
        predicted, _ = learner(encoder, data.train, data.dev, test.texts)
        found[way] = [float((predicted == truth).mean())]
    for way, settings in WAYS.items():
        if data.pairs and "few_shot" in settings:
            continue
        for seed in seeds:
            options = ClassifyOptions.model_validate({**settings, "seed": seed})
            own = read_class_data(source, options) if options.per_class else drawn(data, texts)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                model = train_classifier(demo_model(), own, Path(scratch) / "model", options)
                found.setdefault(way, []).append(accuracy(model, test))
            print(f"{path.name}, {way}, seed {seed}: {found[way][-1]:.4f}", file=sys.stderr, flush=True)
    return found


def markdown(found: dict[str, dict[str, list[float]]]) -> str:
    """A row for each way."""

    def cell(values: list[float]) -> str:
        if not values:
            return "-"
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.4f}{spread}"

    lines = [f"| | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for way in dict.fromkeys(way for ways in found.values() for way in ways):
        lines.append(f"| {way} | {' | '.join(cell(ways.get(way, [])) for ways in found.values())} |")
    return "\n".join(lines)


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", default="sst2,mnli,imdb")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--write", action="store_true", help="put the table into docs/")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    found = {}
    with tempfile.TemporaryDirectory(prefix="compare-classifiers-") as scratch:
        for name in arguments.sets.split(","):
            found[name] = measure(arguments.data / "classification" / name, arguments.texts, seeds, Path(scratch))
            print(markdown(found), file=sys.stderr, flush=True)
    if arguments.write:
        into_docs("ways to classify", markdown(found))
    print(markdown(found))
    print(json.dumps({"name": "compare_classifiers", **found}))


if __name__ == "__main__":
    main()
