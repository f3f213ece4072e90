"""Classifiers beside their probe: does tuning all weights reach less than a logistic regression on frozen ones?

    .venv/bin/python scripts/compare_probe.py --data DIR [--sets sst2,imdb,banking77,mnli] [--texts 100,300,1000]
        [--seeds 1,2,3] [--starts probe,random] [--heads cls,pooled] [--test 1000]

MiniLM on texts drawn from classification/NAME of --data (of MNLI, pairs), with the options of `classify train` as they
are by default but for those that are named, judged on texts of the test split. Beside the accuracy stands that of the
probe that the training begins with; noise is what two accuracies of so many texts differ by. Prints a Markdown table
and one JSON line. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from measuring import into_docs

from bge_cocktail.core.outputs import read_object
from bge_cocktail.data.labelled import LabelledTexts
from bge_cocktail.data.sources import Source
from bge_cocktail.flow.demo import demo_model
from bge_cocktail.options import ClassifyOptions
from bge_cocktail.training.classifier.data import ClassifierData, read_class_data, read_test
from bge_cocktail.training.classifier.train import train_classifier

SMALL_DEV = 0.3
"""Of as many texts as are tuned on, dev has this part: who has few texts has few to choose by."""


def drawn(texts: LabelledTexts, count: int, seed: int) -> LabelledTexts:
    """A seeded draw."""
    return texts.at(sorted(np.random.default_rng(seed).permutation(len(texts))[:count].tolist()))


def some(data: ClassifierData, count: int, seed: int, test: LabelledTexts) -> ClassifierData:
    """Train and dev of a size, with the test texts."""
    dev = drawn(data.dev, max(50, int(SMALL_DEV * count)), seed)
    return replace(data, train=drawn(data.train, count, seed), dev=dev, test=test)


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", default="sst2,imdb,banking77,mnli")
    parser.add_argument("--texts", default="100,300,1000")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--starts", default="probe")
    parser.add_argument("--heads", default="")
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--options", default="{}", help="more options, as JSON")
    parser.add_argument("--write", action="store_true", help="put the table into docs/")
    arguments = parser.parse_args()
    more: dict[str, Any] = json.loads(arguments.options)
    heads = arguments.heads.split(",") if arguments.heads else [ClassifyOptions().head]
    rows = []
    for name in arguments.sets.split(","):
        source = Source(str(arguments.data / "classification" / name))
        data = read_class_data(source, ClassifyOptions())
        test = read_test(source, ClassifyOptions(), data)
        if test is None:
            raise SystemExit(f"{name} has no test split")
        judged = drawn(test, arguments.test, 0)
        sizes = [1000] if name == "mnli" else [int(size) for size in arguments.texts.split(",")]
        for size, head, start in product(sizes, heads, arguments.starts.split(",")):
            scores = []
            begun = time.process_time()
            for seed in map(int, arguments.seeds.split(",")):
                options = ClassifyOptions.model_validate({**more, "seed": seed, "head": head, "head_start": start})
                with tempfile.TemporaryDirectory(prefix="probe-") as scratch:
                    folder = train_classifier(
                        demo_model(), some(data, size, seed, judged), Path(scratch) / "classifier", options
                    )
                    run = read_object(folder / "run.json")
                scores.append((run["test"]["accuracy"], run["probe"]["test"]["accuracy"], run["best_step"]))
            tuned, probe, steps = (np.array(column) for column in zip(*scores, strict=True))
            # of one accuracy of so many texts: two of them differ by more only one time in forty
            noise = 1.96 * float(np.sqrt(2 * probe.mean() * (1 - probe.mean()) / len(judged) / len(scores)))
            rows.append(
                {
                    "set": name,
                    "texts": size,
                    "head": head,
                    "start": start,
                    "tuned": round(float(tuned.mean()), 4),
                    "probe": round(float(probe.mean()), 4),
                    "noise": round(noise, 4),
                    "below": bool(tuned.mean() < probe.mean() - noise),
                    "best_steps": steps.tolist(),
                    "cpu_seconds": round((time.process_time() - begun) / len(scores), 1),
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if arguments.write:
        into_docs("classifiers and their probe", markdown(rows))
    print(markdown(rows))
    print(json.dumps({"name": "compare_probe", "results": rows, "met": not any(row["below"] for row in rows)}))


def markdown(rows: list[dict[str, Any]]) -> str:
    """A row for each set and size, and for each head and start that isn't the default."""
    usual = ClassifyOptions()
    lines = ["| test accuracy, mean of the seeds | probe | tuned | noise |", "|---|---|---|---|"]
    for row in rows:
        name = f"{row['set']}, {row['texts']} {'pairs' if row['set'] == 'mnli' else 'texts'}"
        name += "" if row["head"] == usual.head else f", head {row['head']}"
        name += "" if row["start"] == usual.head_start else f", {row['start']} start"
        lines.append(f"| {name} | {row['probe']:.4f} | {row['tuned']:.4f} | ± {row['noise']:.4f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
