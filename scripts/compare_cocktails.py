"""LM-Cocktail over classifiers of sentiment: the target and the other tasks before and after merging.

    .venv/bin/python scripts/compare_cocktails.py --data DIR [--texts 1000] [--examples 100]

MiniLM with a head, tuned on a draw of SST-2, IMDb, Yelp and Amazon sentences (classification/NAME of --data; two seeds
each), of MNLI and of Banking77. Every sentiment task is the target once: its classifier (seed 1) keeps half of the
weight; of 2, the base has the rest; of 10, the base and eight others (the other sentiment tasks with both seeds, MNLI,
Banking77) divide it by LM-Cocktail's softmax of the cross-entropy on --examples texts of the target's dev. "relative"
is the same with weights by skill. The methods for models of different tasks add up the task vectors of the target's
classifier and of one of each other task. Test accuracy, of the other three tasks the mean; all four have the same two
labels, so one head answers for all. Prints a Markdown table and one JSON line. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measuring import into_docs

from bge_cocktail.data.labelled import LabelledTexts
from bge_cocktail.data.sources import Source
from bge_cocktail.flow.demo import demo_model
from bge_cocktail.options import ClassifyOptions, MergeOptions, PredictOptions
from bge_cocktail.training.classifier.data import ClassifierData, read_class_data, read_test
from bge_cocktail.training.classifier.merge import merge_classifiers
from bge_cocktail.training.classifier.model import load_classifier
from bge_cocktail.training.classifier.predict import predict
from bge_cocktail.training.classifier.train import train_classifier

SENTIMENT = ("sst2", "imdb", "yelp_sentences", "amazon_sentences")
OTHERS = ("mnli", "banking77")
# heads on [CLS] that begin with random numbers
COMMON: dict[str, Any] = {
    **{"max_length": 128, "learning_rate": 5e-5, "epochs": 3},
    **{"head": "cls", "head_start": "random"},
}
MOST_TEST = 1000
FOR_TASKS = ("ties", "iso-c", "iso-cts", "tsv-m", "wudi")


def some(texts: LabelledTexts, count: int) -> LabelledTexts:
    """A draw."""
    return texts.at(sorted(np.random.default_rng(0).permutation(len(texts))[:count].tolist()))


def accuracy(model: Path, test: LabelledTexts, names: Sequence[str]) -> float:
    """Share of the texts that are predicted right."""
    found = predict(load_classifier(model), test.texts, PredictOptions())
    return float(np.mean([one.labels == (names[own[0]],) for one, own in zip(found, test.labels, strict=True)]))


def main() -> None:
    """Train, merge, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="put the table into docs/")
    arguments = parser.parse_args()
    data: dict[str, ClassifierData] = {}
    tests: dict[str, LabelledTexts] = {}
    models: dict[tuple[str, int], Path] = {}
    with tempfile.TemporaryDirectory(prefix="cocktails-") as scratch:
        for name in (*SENTIMENT, *OTHERS):
            source = Source(str(arguments.data / "classification" / name))
            for seed in (1, 2) if name in SENTIMENT else (1,):
                options = ClassifyOptions.model_validate({**COMMON, "seed": seed})
                own = read_class_data(source, options)
                data[name] = own
                drawn = replace(own, train=some(own.train, arguments.texts))
                models[name, seed] = train_classifier(demo_model(), drawn, Path(scratch) / f"{name}-{seed}", options)
                print(f"tuned {name}, seed {seed}", file=sys.stderr, flush=True)
            test = read_test(source, ClassifyOptions(), data[name])
            if name in SENTIMENT and test is not None:
                tests[name] = some(test, MOST_TEST)
        rows = [
            {"target": target, "model": model, **scores}
            for target in SENTIMENT
            for model, scores in judged(target, models, data, tests, Path(scratch), arguments.examples).items()
        ]
    if arguments.write:
        into_docs("cocktails of classifiers", markdown(rows))
    print(markdown(rows))
    print(json.dumps({"name": "compare_cocktails", "results": rows}))


def judged(
    target: str,
    models: dict[tuple[str, int], Path],
    data: dict[str, ClassifierData],
    tests: dict[str, LabelledTexts],
    scratch: Path,
    examples: int,
) -> dict[str, dict[str, float]]:
    """Accuracy of the target's classifier and its cocktails on its test and on the others'."""
    names = data[target].names
    rest = [path for (name, _), path in models.items() if name != target]
    few = some(data[target].dev, examples)
    ways: dict[str, tuple[list[Path], MergeOptions]] = {
        "cocktail of 2": ([demo_model()], MergeOptions(share=0.5)),
        "cocktail of 10": ([demo_model(), *rest], MergeOptions(share=0.5, weights="cocktail")),
        "cocktail of 10, relative": ([demo_model(), *rest], MergeOptions(share=0.5, weights="relative")),
        "cocktail of 10, first head": (
            [demo_model(), *rest],
            MergeOptions(share=0.5, weights="cocktail", heads="first"),
        ),
    }
    of_tasks = [path for (name, seed), path in models.items() if name != target and seed == 1]
    for method in FOR_TASKS:
        ways[method] = (of_tasks, MergeOptions(method=method, base=str(demo_model())))
    folders = {"tuned": models[target, 1]}
    for way, (others, options) in ways.items():
        looks = options.weights != "uniform"  # such weights are found on examples
        output = scratch / f"{target}-{way.replace(' ', '-')}"
        merge_classifiers([folders["tuned"], *others], output, options, examples=few if looks else None)
        folders[way] = output
    found = {}
    for way, folder in folders.items():
        scores = {name: accuracy(folder, test, names) for name, test in tests.items()}
        found[way] = {
            "target_accuracy": scores[target],
            "others": statistics.mean(score for name, score in scores.items() if name != target),
        }
        print(f"{target}, {way}: {found[way]}", file=sys.stderr, flush=True)
    return found


def markdown(rows: list[dict[str, Any]]) -> str:
    """A row for each model; each target in two columns."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    lines = [
        f"| | {' | '.join(f'{name}, target | {name}, others' for name in targets)} |",
        "|---" * (2 * len(targets) + 1) + "|",
    ]
    for way in dict.fromkeys(row["model"] for row in rows):
        chosen = [row for row in rows if row["model"] == way]
        cells = [f"{row['target_accuracy']:.4f} | {row['others']:.4f}" for row in chosen]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
