"""LM-Cocktail (arXiv:2311.13534) done again: each task is the target once, all the others tell what is forgotten.

    .venv/bin/python scripts/reproduce_lm_cocktail.py small --data DIR -o WORK [--seeds 1,2,3] [--minutes N]
    .venv/bin/python scripts/reproduce_lm_cocktail.py full -o WORK [--dry-run]
    .venv/bin/python scripts/reproduce_lm_cocktail.py tables -o WORK [--results docs/results]

*small*: MiniLM on nine tasks of --data and of this repository, subsampled so that two cores do it in hours. *full*: the
paper's setting, BGE on nine data sets of the hub, on one GPU; --dry-run says what it would fetch and cost. Both can be
cut off and started again: what is done is kept in WORK, and seeds (--seeds) or targets (--targets) can be done side by
side (OMP_NUM_THREADS=1); --ways names those that are done, where not all seeds need all. For each target and seed: the
base, the model tuned on the target, its cocktails and the other ways, judged on the target's test and on those of all
others; what is chosen is chosen on dev. `tables` prints means over the targets with bootstrap intervals over the
targets, and whether the bars are met, and with --results writes them as Markdown and JSON. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reproduction import tables
from reproduction.tasks import Sizes, TaskSource, prepare_tasks, task_folder
from reproduction.ways import NEW_TASK_WAYS, WAYS, Bench, Way, scores_of

from bge_cocktail.core.outputs import write_json
from bge_cocktail.core.version import __version__
from bge_cocktail.evaluating.tasks.task import Task, open_task
from bge_cocktail.flow.demo import demo_model
from bge_cocktail.models.folder import model_folder
from bge_cocktail.options import EncodeOptions, TrainOptions
from bge_cocktail.training.engine.malloc import free_memory

ROOT = Path(__file__).resolve().parent.parent
BASE = "base"


@dataclass(frozen=True)
class Recipe:
    """What is reproduced.

    Attributes:
        sources: The tasks.
        sizes: How much of each.
        training: How models are tuned; the seed is each run's own.
        encoding: How texts are embedded in mining, in finding weights and in judging.
    """

    sources: Sequence[TaskSource]
    sizes: Sizes
    training: TrainOptions
    encoding: EncodeOptions


def small(data: Path) -> Recipe:
    """Nine tasks for two cores: retrieval in two languages, intent, sentiment, topics, similarity."""
    sources = [
        *(TaskSource(name, "retrieval", str(data / "retrieval" / name)) for name in ("scifact", "medquad", "squad")),
        TaskSource("cmrc2018_zh", "retrieval", str(data / "retrieval/cmrc2018_zh")),
        TaskSource("banking77", "labels", str(data / "classification/banking77"), train=800),
        TaskSource("sst2", "labels", str(data / "classification/sst2")),
        TaskSource("amazon", "labels", str(data / "classification/amazon_sentences")),
        TaskSource("topics", "labels", str(ROOT / "data/topics")),
        TaskSource("stsb", "sts", str(data / "sts/stsb"), scale=5.0),
    ]
    training = TrainOptions(
        epochs=3, batch_size=16, learning_rate=5e-5, negatives=2, max_length=64, query_max_length=32, patience=0
    )
    return Recipe(sources, Sizes(), training, EncodeOptions(precision="auto", max_length=64))


# rows of the hub's data sets that hold queries and their answers; the sizes are those of the data cards
HUB = {
    "gooaq": ("sentence-transformers/gooaq", None),
    "yahoo-answers": ("sentence-transformers/yahoo-answers", "title-answer"),
    "msmarco": ("sentence-transformers/msmarco-bm25", "triplet"),
    "stackexchange": ("sentence-transformers/stackexchange-duplicates", "body-body-pair"),
    "eli5": ("sentence-transformers/eli5", None),
    "squad": ("sentence-transformers/squad", None),
    "amazon-qa": ("sentence-transformers/amazon-qa", None),
    "quora": ("sentence-transformers/quora-duplicates", "pair"),
    "hotpotqa": ("sentence-transformers/hotpotqa", "triplet"),
}
FULL_BASE = "BAAI/bge-base-en-v1.5"


def full() -> Recipe:
    """The paper's setting for encoders: BGE, nine data sets, all of the ways."""
    sources = [TaskSource(name, "pairs", source, config) for name, (source, config) in HUB.items()]
    training = TrainOptions(
        epochs=1, batch_size=64, learning_rate=2e-5, negatives=7, max_length=256, query_max_length=64, patience=0
    )
    sizes = Sizes(train=50_000, dev=1000, test=2000, documents=200_000, negatives=7)
    return Recipe(sources, sizes, training, EncodeOptions(precision="auto", max_length=256))


# what one H100 is assumed to do with a base-size encoder; nothing here has measured it
TOKENS_A_SECOND = {"train": 300_000, "embed": 900_000}


def plan_of(recipe: Recipe, base: str, seeds: Sequence[int]) -> str:
    """Return what a recipe fetches and what it costs, as far as that can be known before."""
    sizes, training = recipe.sizes, recipe.training
    names = [source.name for source in recipe.sources]
    tasks, runs = len(names), len(names) * len(seeds)
    length = training.max_length or 256
    tuned = runs * (sizes.train or 0) * training.epochs * (1 + 1 + training.negatives) * length * 0.6
    corpus = tasks * (sizes.documents or 0) * length * 0.6
    judged = (1 + runs * len(WAYS)) * corpus
    hours = (2 * tuned / TOKENS_A_SECOND["train"] + judged / TOKENS_A_SECOND["embed"]) / 3600
    lines = [
        f"base: {base}",
        f"{tasks} tasks, {len(seeds)} seeds, {len(WAYS)} ways, {len(NEW_TASK_WAYS)} for new tasks",
    ]
    lines += [f"fetched: {source.source} ({source.config or 'default'})" for source in recipe.sources]
    lines.append(f"each task: {sizes.train} records, {sizes.dev} queries of dev, {sizes.test} of test")
    lines.append(f"and {sizes.documents} documents")
    lines.append(f"about {hours:.0f} hours on one H100 (assumed: {TOKENS_A_SECOND} tokens a second, not measured)")
    return "\n".join(lines)


class Reproduction:
    """A recipe in a folder, whatever of it is done."""

    def __init__(self, recipe: Recipe, base: Path, work: Path) -> None:
        self.recipe, self.base, self.work = recipe, base, work
        self.names = [source.name for source in recipe.sources]
        self.encoding = recipe.encoding.model_copy(update={"cache_dir": work / "embeddings"})

    def run(
        self,
        seeds: Sequence[int],
        seconds: float | None = None,
        targets: Sequence[str] = (),
        ways: Sequence[str] = (),
    ) -> bool:
        """Do what is left, seed by seed; return whether nothing is left.

        Args:
            seeds: Of the trainings.
            seconds: No step is begun after so long.
            targets: Tasks that are the target once; all without it.
            ways: What is done of `WAYS` and `NEW_TASK_WAYS`; all without it.
        """
        started = time.monotonic()
        self.work.mkdir(parents=True, exist_ok=True)
        described = {"version": __version__, "base": self.base.name, **asdict(self.recipe)}
        write_json(self.work / "recipe.json", json.loads(json.dumps(described, default=lambda one: one.model_dump())))
        prepare_tasks(self.recipe.sources, self.work / "tasks", self.recipe.sizes, self.base, self.encoding)
        for step in self._steps(seeds, targets or self.names, ways or [*WAYS, *NEW_TASK_WAYS]):
            if seconds is not None and time.monotonic() - started > seconds:
                return False
            path, make = step
            if path.is_file():
                continue
            begun, cpu = time.monotonic(), time.process_time()
            made = make()
            cost = {"seconds": time.monotonic() - begun, "cpu_seconds": time.process_time() - cpu}
            cost["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"scores": made, "cost": cost})
            free_memory()  # a training leaves holes that the next step would add to
            print(f"{path.relative_to(self.work)}: {cost['seconds']:.0f} s", file=sys.stderr, flush=True)
        return True

    def _steps(
        self, seeds: Sequence[int], targets: Sequence[str], ways: Sequence[str]
    ) -> Iterator[tuple[Path, Callable[[], dict[str, Any]]]]:
        """What is to be done, and the file that says it is."""
        tasks = [open_task(task_folder(self.work / "tasks", name), "target") for name in self.names]
        uncached = self.encoding.model_copy(update={"cache": False})
        results = self.work / "results"
        yield results / f"{BASE}.json", lambda: scores_of(self.base, tasks, uncached)
        scored = frozenset(source.name for source in self.recipe.sources if source.kind == "sts")
        common = (self.base, self.names, scored, self.work / "tasks", self.work / "models")
        for seed in seeds:
            bench = Bench(*common, self.recipe.training, self.encoding, seed)
            for name in self.names:
                yield results / f"{seed}/{name}/training.json", partial(_tuned, bench, name)
            for target in targets:
                own = [task for task in tasks if task.name == target]
                # its own, for seeds and targets may be done side by side
                scratch = self.work / f"models/{seed}/scratch-{target}"
                for way in ways:
                    make = (WAYS | NEW_TASK_WAYS)[way]
                    judged = tasks if way in WAYS else own
                    step = partial(_judged, make, bench, target, scratch, judged, uncached)
                    yield results / f"{seed}/{target}/{way}.json", step

    def read(self) -> tuple[tables.Scores, dict[tuple[int, str, str], tables.Scores]]:
        """Return the base's scores, and those that are there of all others."""
        results = self.work / "results"
        base = json.loads((results / f"{BASE}.json").read_text())["scores"]
        found = {}
        for path in sorted(results.glob("*/*/*.json")):
            if path.stem != "training":
                found[int(path.parts[-3]), path.parts[-2], path.stem] = json.loads(path.read_text())["scores"]
        return base, found

    def costs(self) -> dict[str, float]:
        """Return the hours of processor time so far, and the most memory that was held."""
        costs = [json.loads(path.read_text())["cost"] for path in (self.work / "results").rglob("*.json")]
        return {
            "cpu_hours": round(sum(cost["cpu_seconds"] for cost in costs) / 3600, 2),
            "peak_gigabytes": round(max(cost["peak_megabytes"] for cost in costs) / 1024, 2),
        }


def _judged(
    make: Way, bench: Bench, target: str, scratch: Path, tasks: Sequence[Task], encoding: EncodeOptions
) -> dict[str, Any]:
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        return scores_of(make(bench, target, scratch), tasks, encoding)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _tuned(bench: Bench, name: str) -> dict[str, Any]:
    bench.tune(name, bench.tuned(name))
    return {}


def report(reproduction: Reproduction, results: Path | None) -> dict[str, Any]:
    """Print the tables, and write them."""
    base, found = reproduction.read()
    rows = tables.summary(base, found, list(WAYS))
    unseen = tables.new_tasks(base, found, list(NEW_TASK_WAYS))
    bars = tables.bars(rows, unseen, found)
    text = tables.markdown(rows, unseen) + "\n\n" + tables.by_target(base, found, list(WAYS))
    costs = reproduction.costs()
    content = {"rows": rows, "new_tasks": unseen, "bars": bars, "costs": costs}
    print(text)
    for bar in bars:
        print(f"{'met' if bar['met'] else 'missed'}: {bar['bar']} ({bar['reached']})")
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        recipe = json.loads((reproduction.work / "recipe.json").read_text())
        for source in recipe["sources"]:  # where data lie is this machine's own
            source["source"] = "/".join(Path(source["source"]).parts[-2:])
        write_json(results / "lm_cocktail.json", {**recipe, **content})
        (results / "lm_cocktail.md").write_text(text + "\n", encoding="utf-8")
    return content


def main() -> None:
    """Do a recipe, or show what it gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=("small", "full", "tables"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--minutes", type=float, help="begin no step after so long; a later call goes on")
    parser.add_argument("--targets", default="", help="tasks that are the target once, with commas between; or all")
    parser.add_argument("--ways", default="", help="ways that are done, with semicolons between; or all")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    if arguments.recipe == "tables":
        report(Reproduction(small(Path()), demo_model(), arguments.output), arguments.results)
        return
    if arguments.recipe == "small" and arguments.data is None:
        parser.error("small needs --data DIR")
    recipe = small(arguments.data) if arguments.recipe == "small" else full()
    if arguments.dry_run:
        print(plan_of(recipe, "MiniLM" if arguments.recipe == "small" else FULL_BASE, seeds))
        return
    base = demo_model() if arguments.recipe == "small" else model_folder(FULL_BASE)
    reproduction = Reproduction(recipe, base, arguments.output)
    seconds = None if arguments.minutes is None else 60 * arguments.minutes
    targets = [name for name in arguments.targets.split(",") if name]
    ways = [name for name in arguments.ways.split(";") if name]
    if unknown := [name for name in ways if name not in WAYS and name not in NEW_TASK_WAYS]:
        parser.error(f"no way is called '{unknown[0]}'; there are {'; '.join([*WAYS, *NEW_TASK_WAYS])}")
    whole = reproduction.run(seeds, seconds, targets, ways)
    content = report(reproduction, arguments.results)
    print(json.dumps({"name": "reproduce_lm_cocktail", "whole": whole, "bars": content["bars"], **content["costs"]}))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    main()
