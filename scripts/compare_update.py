"""`update` beside training anew: a model that was tuned on some topics of MedQuAD, and now others come.

    .venv/bin/python scripts/compare_update.py --data DIR [--records 600] [--seeds 1,2,3] [--quick] [--write]

Topics are clusters of the documents' embeddings; half of the records are of old topics, half of new ones. The model in
use is MiniLM tuned on the old ones; `update` has it, the new records and 40 % of the old ones; "anew" tunes the base on
all records. All is as by default but for the texts' length (64 tokens) and two mined negatives. Judged on all test
queries and on those of each half; a query's value is its mean over the seeds, and differences are paired by query.
Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import into_docs
from reproduction.tasks import Sizes, TaskSource, prepare_tasks, task_folder, training_records
from reproduction.ways import scores_of
from sklearn.cluster import KMeans

from bge_cocktail.core.outputs import read_object
from bge_cocktail.data.beir import read_beir
from bge_cocktail.data.record import Record
from bge_cocktail.evaluating.scores import bootstrap_interval
from bge_cocktail.evaluating.tasks.task import open_task
from bge_cocktail.flow.demo import demo_model
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.options import EncodeOptions, TrainOptions
from bge_cocktail.training.encoder.train import train
from bge_cocktail.training.encoder.update import UPDATED, update

TOPICS = 20
PARTS = ("all", "old topics", "new topics")
Values = dict[str, dict[str, list[float]]]
"""By model and part: nDCG@10 of each query, mean of the seeds."""


def halves(texts: Sequence[str], encoder: CachedEncoder) -> list[bool]:
    """Return for each text whether its topic is a new one; topics are dealt out by size, so that halves are alike."""
    topics = KMeans(TOPICS, random_state=0, n_init=4).fit_predict(np.asarray(encoder.encode_document(texts)))
    counts = np.bincount(topics, minlength=TOPICS)
    new = {int(topic) for place, topic in enumerate(np.argsort(-counts, kind="stable")) if place % 4 in (1, 2)}
    return [int(topic) in new for topic in topics]


def models_of(
    base: Path, records: Mapping[str, list[Record]], work: Path, seed: int
) -> tuple[dict[str, Path], dict[str, int]]:
    """Return the model in use, updated, and trained anew; and the steps of each."""
    options = TrainOptions(max_length=64, query_max_length=32, negatives=2, seed=seed)
    in_use = train(base, records["old"], work / "in_use", options)
    update(in_use, base, records["new"], records["old"], work / "update", options)
    anew = train(base, [*records["old"], *records["new"]], work / "anew", options)
    models = {"in use": in_use, "updated": work / "update" / UPDATED, "anew": anew}
    runs = {"in use": in_use, "updated": work / "update", "anew": anew}
    return models, {name: int(read_object(folder / "run.json")["steps"]) for name, folder in runs.items()}


def measure(data: Path, work: Path, count: int, seeds: Sequence[int]) -> tuple[Values, dict[str, int]]:
    """Train and judge; return the values of all queries, and the steps of each model."""
    base = demo_model()
    encoding = EncodeOptions(precision="auto", max_length=64, cache_dir=work / "embeddings")
    source = TaskSource("medquad", "retrieval", str(data / "retrieval/medquad"))
    sizes = Sizes(train=count, test=min(count, 400), documents=1000, negatives=2)
    prepare_tasks([source], work / "tasks", sizes, base, encoding)
    encoder = CachedEncoder(base, encoding)
    given = training_records(work / "tasks", source.name)
    judged = read_beir(task_folder(work / "tasks", source.name))
    asked_of = [judged.corpus[next(iter(grades))] for grades in judged.qrels.values()]
    # records and test queries are parted by the same clusters
    new = halves([*(record.pos[0] for record in given), *asked_of], encoder)
    records = {
        name: [record for record, one in zip(given, new, strict=False) if one is (name == "new")]
        for name in ("old", "new")
    }
    of_new = dict(zip(judged.queries, new[len(given) :], strict=True))
    task = open_task(task_folder(work / "tasks", source.name), "target")
    values: Values = {}
    steps: dict[str, int] = {}
    for seed in seeds:
        models, steps = models_of(base, records, work / f"models/{seed}", seed)
        # the base is the same for all seeds
        for name, model in models.items() if values else [("base", base), *models.items()]:
            scores = scores_of(model, [task], encoding.model_copy(update={"cache": False}))[source.name]
            for part in PARTS:
                wanted = [
                    value
                    for value, is_new in zip(scores["values"], of_new.values(), strict=True)
                    if part == "all" or is_new is (part == "new topics")
                ]
                before = values.setdefault(name, {}).setdefault(part, [0.0] * len(wanted))
                times = 1 if name == "base" else len(seeds)
                values[name][part] = [old + value / times for old, value in zip(before, wanted, strict=True)]
        print(f"seed {seed}: {steps}", file=sys.stderr, flush=True)
    return values, steps


def table(values: Values, steps: Mapping[str, int]) -> tuple[str, dict[str, Any]]:
    """Return nDCG@10 of each part, steps, and the difference of `updated` to `anew` with its interval."""
    lines = [f"| nDCG@10 | {' | '.join(PARTS)} | steps |", "|---" * (len(PARTS) + 2) + "|"]
    for name, parts in values.items():
        cells = [f"{float(np.mean(parts[part])):.4f}" for part in PARTS]
        lines.append(f"| {name} | {' | '.join(cells)} | {steps.get(name, 0)} |")
    differences: dict[str, Any] = {}
    for part in PARTS:
        changes = np.array(values["updated"][part]) - np.array(values["anew"][part])
        low, high = bootstrap_interval(changes)
        differences[part] = [round(100 * float(one), 2) for one in (changes.mean(), low, high)]
    cells = [f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" for mean, low, high in differences.values()]
    share = steps["updated"] / steps["anew"]
    lines.append(f"| updated against anew, points | {' | '.join(cells)} | {share:.0%} |")
    return "\n".join(lines), differences


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--records", type=int, default=600)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--quick", action="store_true", help="200 records and one seed")
    parser.add_argument("--write", action="store_true", help="put the table into docs/")
    arguments = parser.parse_args()
    count, seeds = (
        (200, [1]) if arguments.quick else (arguments.records, [int(one) for one in arguments.seeds.split(",")])
    )
    with tempfile.TemporaryDirectory(prefix="update-") as work:
        text, differences = table(*measure(arguments.data, Path(work), count, seeds))
    print(text)
    if arguments.write:
        into_docs("updates", text)
    _, low, high = differences["all"]
    print(json.dumps({"name": "compare_update", "differences": differences, "met": low <= 0 <= high or low > 0}))


if __name__ == "__main__":
    main()
