"""Classifiers of few texts beside SetFit: the same encoder, texts, learning rate and draws a text.

    .venv/bin/python scripts/compare_few_shot.py --data DIR [--sets sst2,banking77] [--per-class 8,64] [--seeds 1,2,3]

MiniLM on texts drawn from classification/NAME of --data, judged on the test split (at most --test texts of it). For
each text, ours draws N records of a text of its class and one of another, SetFit N pairs of each kind (its
num_iterations); N is 20 where that takes minutes on two cores and less for many classes, and the table says how much.
One epoch, batches of 16 records or pairs. SetFit runs in an environment of its own. Prints a Markdown table of test
accuracy, mean and standard deviation over the seeds, and one JSON line. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measuring import into_docs
from peers import SETFIT, peer_environment

from bge_cocktail.data.sources import Source
from bge_cocktail.flow.demo import demo_model
from bge_cocktail.options import ClassifyOptions, PredictOptions
from bge_cocktail.training.classifier.data import read_class_data
from bge_cocktail.training.classifier.model import load_classifier
from bge_cocktail.training.classifier.predict import predict
from bge_cocktail.training.classifier.train import train_classifier

WAY = Path(__file__).parent / "trainers/setfit_way.py"
COMMON: dict[str, Any] = {"max_length": 128, "batch_size": 16, "learning_rate": 2e-5}
# texts encoded in a training, of either side: what two cores do in minutes
MOST_PAIRS = 3_000
Row = dict[str, str]


def rows_of(path: Path) -> list[Row]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def drawn(rows: list[Row], count: int, seed: int) -> list[Row]:
    """So many of each label."""
    found: dict[str, list[Row]] = {}
    for row in np.random.default_rng(seed).permutation(len(rows)).tolist():
        found.setdefault(rows[row]["label"], []).append(rows[row])
    return [row for label in sorted(found) for row in found[label][:count]]


def write(rows: list[Row], path: Path) -> Path:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def ours(folder: Path, pairs: int, seed: int) -> dict[str, float]:
    """Accuracy of ours."""
    settings = {**COMMON, "few_shot": True, "epochs": 1, "pairs_per_text": pairs, "seed": seed, "precision": "fp32"}
    options = ClassifyOptions.model_validate(settings)
    model = train_classifier(demo_model(), read_class_data(Source(str(folder)), options), folder / "model", options)
    test = rows_of(folder / "test.jsonl")
    found = predict(load_classifier(model), [row["text"] for row in test], PredictOptions(precision="fp32"))
    right = [one.labels == (row["label"],) for one, row in zip(found, test, strict=True)]
    return {"accuracy": statistics.mean(right)}


def theirs(folder: Path, pairs: int, seed: int) -> dict[str, float]:
    """Accuracy of SetFit."""
    settings = {**COMMON, "pairs_per_text": pairs, "seed": seed, "model": str(demo_model()), "files": ["train", "test"]}
    settings |= {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    given = folder / "settings.json"
    given.write_text(json.dumps(settings))
    python = peer_environment("setfit", SETFIT) / "bin/python"
    done = subprocess.run([str(python), str(WAY), str(given)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"SetFit failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(path: Path, per_class: int, seeds: list[int], most_test: int) -> dict[str, Any]:
    """Both sides at one size, over the seeds."""
    train, dev, test = (rows_of(path / f"{name}.jsonl") for name in ("train", "dev", "test"))
    kept = sorted(np.random.default_rng(0).permutation(len(test))[:most_test].tolist())
    found: dict[str, Any] = {"set": path.name, "per_class": per_class, "ours": [], "setfit": []}
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="few-shot-") as scratch:
            folder = Path(scratch)
            chosen = drawn(train, per_class, seed)
            found["pairs"] = max(1, min(20, MOST_PAIRS // len(chosen)))
            write(chosen, folder / "train.jsonl")
            write(dev[:100], folder / "dev.jsonl")  # ours wants one; few_shot only sets the temperature by it
            write([test[row] for row in kept], folder / "test.jsonl")
            for name, way in (("ours", ours), ("setfit", theirs)):
                found[name].append(way(folder, found["pairs"], seed))
        print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def markdown(results: list[dict[str, Any]]) -> str:
    """A row for each set and size."""

    def cell(runs: list[dict[str, float]]) -> str:
        values = [one["accuracy"] for one in runs]
        return f"{statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f}"

    lines = [
        "| texts a class | draws a text | ours | SetFit |",
        "|---|---|---|---|",
    ]
    for one in results:
        sides = f"{cell(one['ours'])} | {cell(one['setfit'])}"
        lines.append(f"| {one['set']}, {one['per_class']} | {one['pairs']} | {sides} |")
    return "\n".join(lines)


def main() -> None:
    """Train both ways, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", default="sst2,banking77")
    parser.add_argument("--per-class", default="8,64")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--write", action="store_true", help="put the table into docs/")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    results = [
        measure(arguments.data / "classification" / name, int(count), seeds, arguments.test)
        for name in arguments.sets.split(",")
        for count in arguments.per_class.split(",")
    ]
    if arguments.write:
        into_docs("few shot", markdown(results))
    print(markdown(results))
    print(json.dumps({"name": "compare_few_shot", "results": results}))


if __name__ == "__main__":
    main()
