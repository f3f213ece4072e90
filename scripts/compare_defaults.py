"""What the defaults of `train` and `mine` are chosen by: one option changed at a time, on five sets and three seeds.

    .venv/bin/python scripts/compare_defaults.py --data DIR -o WORK [--seeds 1,2,3] [--minutes N] [--write]

Three retrieval sets and two sets of labels, 256 records of each, texts cut at 64 tokens, three mined negatives, all
else as by default. Each model is judged on the test part of its own set (1,000 documents and 150 queries, or 150
texts), and on two sets that nothing was tuned on. Differences to the default are paired by set and seed; their
intervals are bootstrapped over the pairs. Each training is a line of docs/results/defaults.jsonl; those that are there
aren't done again, on whatever machine they were done. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from figures import DOCS, ROOT
from measuring import into_docs
from reproduction.tables import over_targets
from reproduction.tasks import Sizes, TaskSource, prepare_tasks, task_folder, training_records
from reproduction.ways import scores_of

from bge_cocktail.core.outputs import write_json
from bge_cocktail.evaluating.tasks.task import open_task
from bge_cocktail.flow.demo import demo_model
from bge_cocktail.options import EncodeOptions, MineOptions, TrainOptions
from bge_cocktail.training.encoder.train import train

DEFAULT = "as by default"
RESULTS = DOCS / "results/defaults.jsonl"
SIZES = Sizes(train=256, documents=1000, negatives=7)
COMMON: dict[str, Any] = {"max_length": 64, "query_max_length": 32, "negatives": 3, "patience": 0}
SETTINGS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "learning rate 5e-5": {"learning_rate": 5e-5},
    "temperature 0.02": {"temperature": 0.02},
    "temperature 0.1": {"temperature": 0.1},
    "1 epoch": {"epochs": 1},
    "1 mined negative": {"negatives": 1},
    "batches of 16": {"batch_size": 16},
    "learning rate 1e-4": {"learning_rate": 1e-4},
    "6 epochs": {"epochs": 6},
    "no mined negatives": {"negatives": 0},
    "learning rate 1e-5": {"learning_rate": 1e-5},
    "batches of 64": {"batch_size": 64},
    "7 mined negatives": {"negatives": 7},
}
# what is mined in another way; sets of labels have nothing mined
MINING: dict[str, dict[str, Any]] = {
    "no margin": {"relative_margin": None},
    "relative margin 0.1": {"relative_margin": 0.1},
    "relative margin 0.15": {"relative_margin": 0.15},
    "margins from the lowest positive": {"margin_from": "lowest"},
}
Results = Mapping[tuple[str, str, int], Mapping[str, float]]
"""By setting, set and seed: points above the base on the set itself, and their mean on the general ones."""


def sets_of(data: Path) -> tuple[list[TaskSource], list[TaskSource]]:
    """Return what is tuned on, and what tells what was forgotten."""
    own = [TaskSource(name, "retrieval", str(data / "retrieval" / name)) for name in ("scifact", "medquad", "squad")]
    labels = [
        TaskSource("topics", "labels", str(ROOT / "data/topics")),
        TaskSource("sst2", "labels", str(data / "classification/sst2")),
    ]
    general = [
        TaskSource("amazon", "labels", str(data / "classification/amazon_sentences")),
        TaskSource("stsb", "sts", str(data / "sts/stsb"), scale=5.0),
    ]
    return [*own, *labels], general


def measure(data: Path, work: Path, seeds: Sequence[int], seconds: float | None) -> bool:
    """Do what is left; return whether nothing is left."""
    started = time.monotonic()
    own, general = sets_of(data)
    encoding = EncodeOptions(precision="auto", max_length=64, cache_dir=work / "embeddings")
    base = demo_model()
    for name, changed in {DEFAULT: {}, **MINING}.items():
        sources = [*own, *general] if name == DEFAULT else [one for one in own if one.kind == "retrieval"]
        prepare_tasks(sources, work / "tasks" / name, SIZES, base, encoding, MineOptions(**changed))
    tasks = {one.name: open_task(task_folder(work / "tasks" / DEFAULT, one.name), "target") for one in (*own, *general)}
    unseen = [tasks[one.name] for one in general]
    uncached = encoding.model_copy(update={"cache": False})
    if not (work / "base.json").is_file():
        write_json(work / "base.json", scores_of(base, list(tasks.values()), uncached))
    before = json.loads((work / "base.json").read_text())
    have = read()
    for seed in seeds:
        for name in (*SETTINGS, *MINING):
            for source in own:
                if (name, source.name, seed) in have or (name in MINING and source.kind != "retrieval"):
                    continue
                if seconds is not None and time.monotonic() - started > seconds:
                    return False
                begun = time.process_time()
                options = TrainOptions(**{**COMMON, **SETTINGS.get(name, {}), "seed": seed})
                records = training_records(work / "tasks" / (name if name in MINING else DEFAULT), source.name)
                model = work / f"models/{seed}"
                shutil.rmtree(model, ignore_errors=True)
                train(base, records, model, options, overwrite=True)
                trained = time.process_time() - begun
                scores = scores_of(model, [tasks[source.name], *unseen], uncached)
                changes = {task: 100 * (score["value"] - before[task]["value"]) for task, score in scores.items()}
                row = {
                    "setting": name,
                    "set": source.name,
                    "seed": seed,
                    "own": round(changes.pop(source.name), 3),
                    "general": round(float(np.mean(list(changes.values()))), 3),
                    "cpu_seconds": round(trained),
                }
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, file=sys.stderr, flush=True)
    return True


def read() -> Results:
    """Return what has been measured, of all settings."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []
    return {(row["setting"], row["set"], row["seed"]): row for row in rows}


def table(found: Results) -> tuple[str, dict[str, Any]]:
    """Return the differences of all settings to the default, as Markdown and as numbers."""
    lines = ["| | own set | general sets | sets × seeds |", "|---|---|---|---|"]
    numbers: dict[str, Any] = {}
    for name in (DEFAULT, *SETTINGS, *MINING):
        pairs = [key[1:] for key in found if key[0] == name and (DEFAULT, *key[1:]) in found]
        if not pairs or name in numbers:
            continue
        cells = []
        for what in ("own", "general"):
            before = np.array([0.0 if name == DEFAULT else found[DEFAULT, *pair][what] for pair in pairs])
            after = np.array([found[name, *pair][what] for pair in pairs])
            numbers.setdefault(name, {})[what] = over_targets(after - before)
            mean, low, high = numbers[name][what]
            cells.append(f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]")
        shown = f"{name}: change from the base" if name == DEFAULT else name
        lines.append(f"| {shown} | {' | '.join(cells)} | {len(pairs)} |")
    return "\n".join(lines), numbers


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--minutes", type=float, help="begin no training after so long; a later call goes on")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    seconds = None if arguments.minutes is None else 60 * arguments.minutes
    whole = measure(arguments.data, arguments.output, seeds, seconds)
    text, numbers = table(read())
    print(text)
    if arguments.write:
        into_docs("defaults", text)
    print(json.dumps({"name": "compare_defaults", "whole": whole, "differences": numbers}))


if __name__ == "__main__":
    main()
