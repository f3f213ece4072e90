"""What written queries are worth beside real ones: `synthesize`, then tuning, judged on real tests.

    .venv/bin/python scripts/compare_synthetic.py [--data DIR] [--sets handbook,medquad,scifact,squad] [--seeds 1]
        [--filters all,none] [--write]

Of each set (the built-in handbook; the others from --data) 1,000 documents and 264 real train queries at most. MiniLM
is tuned on the real records, and on those that `synthesize` writes for the same documents, which sees no query of the
set; all with two mined negatives and texts of 128 tokens, judged on the real test queries. The gain of the written ones
is said as a share of the real ones'. Prints a Markdown table and one JSON line. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from figures import ROOT
from measuring import into_docs
from reproduction.tasks import Sizes, TaskSource, prepare_tasks, task_folder, training_records
from reproduction.ways import scores_of

from bge_cocktail.data.beir import read_corpus
from bge_cocktail.data.record import Record
from bge_cocktail.data.record_files import read_records
from bge_cocktail.evaluating.scores import bootstrap_interval
from bge_cocktail.evaluating.tasks.task import open_task
from bge_cocktail.flow.demo import demo_model
from bge_cocktail.merging.merge import merge
from bge_cocktail.mining.miner import mine
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.options import EncodeOptions, MergeOptions, MineOptions, SynthesizeOptions, TrainOptions
from bge_cocktail.synthesizing.synthesize import synthesize
from bge_cocktail.training.encoder.train import train

SIZES = Sizes(train=264, test=300, documents=1000, negatives=2)
FILTERS = {"all": SynthesizeOptions(), "none": SynthesizeOptions(filters=["repeated"])}
"""All filters, and none but that of queries which are asked of several passages."""


def measure(source: TaskSource, work: Path, seed: int, filters: list[str]) -> dict[str, list[float]]:
    """Return nDCG@10 of each real test query by model."""
    base = demo_model()
    encoding = EncodeOptions(precision="auto", cache_dir=work / "embeddings")
    prepare_tasks([source], work / "tasks", SIZES, base, encoding)
    folder = task_folder(work / "tasks", source.name)
    # the handbook is small enough to be taken as it is, with its titles
    corpus_folder = Path(source.source) if source.name == "handbook" else folder
    encoder = CachedEncoder(base, encoding)
    options = TrainOptions(max_length=128, query_max_length=64, negatives=2, seed=seed)
    sets: dict[str, list[Record]] = {"real": training_records(work / "tasks", source.name)}
    for name in filters:
        made = synthesize(
            corpus_folder, base, work / f"written/{source.name}-{name}", FILTERS[name], encoding, overwrite=True
        )
        print(f"{source.name}, {name}: {made.to_json()}", file=sys.stderr, flush=True)
        mining = MineOptions(negatives=2, depth=50)
        records = read_records(made.folder)
        sets[f"written, filters: {name}"] = mine(records, encoder, mining, corpus=read_corpus(made.folder)).records
    models = {"base": base}
    for number, (name, records) in enumerate(sets.items()):
        place = work / f"models/{source.name}/{seed}/{number}"
        models[name] = train(base, records, place, options, overwrite=True)
        if name != "real":
            merged = merge([models[name], base], place.with_name(f"{number}-cocktail"), MergeOptions(share=0.5))
            models[f"{name}, cocktail of 2"] = merged.folder
    task = open_task(folder, "target")
    uncached = encoding.model_copy(update={"cache": False})
    return {name: scores_of(model, [task], uncached)[source.name]["values"] for name, model in models.items()}


def rows_of(name: str, values: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return each model's score, its gain over the base with the interval, and the share of the real gain."""
    base, real = np.array(values["base"]), np.array(values["real"])
    rows = []
    for model, own in values.items():
        change = np.array(own) - base
        low, high = bootstrap_interval(change)
        share = float(change.mean() / (real - base).mean()) if model not in ("base", "real") else None
        rows.append(
            {
                "set": name,
                "model": model,
                "nDCG@10": round(float(np.mean(own)), 4),
                "gain": [round(100 * float(one), 2) for one in (change.mean(), low, high)],
                "share": None if share is None else round(share, 3),
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line for each set and model."""
    lines = ["| | nDCG@10 | against base, points | of the real gain |", "|---|---|---|---|"]
    for row in rows:
        mean, low, high = row["gain"]
        gain = "-" if row["model"] == "base" else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
        share = "-" if row["share"] is None else f"{row['share']:.0%}"
        lines.append(f"| {row['set']}, {row['model']} | {row['nDCG@10']:.4f} | {gain} | {share} |")
    return "\n".join(lines)


def main() -> None:
    """Write, tune, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sets", default="handbook")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--filters", default="all")
    parser.add_argument("--write", action="store_true", help="put the table into docs/")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="synthetic-") as work:
        for name in arguments.sets.split(","):
            if name != "handbook" and arguments.data is None:
                raise SystemExit(f"{name} needs --data")
            place = ROOT / "data/handbook" if name == "handbook" else arguments.data / "retrieval" / name
            of_seeds = [
                measure(TaskSource(name, "retrieval", str(place)), Path(work), int(seed), arguments.filters.split(","))
                for seed in arguments.seeds.split(",")
            ]
            means = {model: np.mean([one[model] for one in of_seeds], axis=0).tolist() for model in of_seeds[0]}
            rows += rows_of(name, means)
            print(json.dumps(rows[-len(means) :]), file=sys.stderr, flush=True)
    if arguments.write:
        into_docs("written queries", markdown(rows))
    print(markdown(rows))
    written = [row for row in rows if row["share"] is not None]
    met = all(row["share"] >= 0.4 and row["gain"][2] >= 0 for row in written)
    print(json.dumps({"name": "compare_synthetic", "results": rows, "target": 0.4, "met": met}))


if __name__ == "__main__":
    main()
