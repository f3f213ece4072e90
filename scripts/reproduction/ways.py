"""Models made for a target: tuned on it, and merged from tuned ones in all the ways that are compared."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bge_cocktail.data.record import Record
from bge_cocktail.evaluating.evaluate import evaluate, scorer
from bge_cocktail.evaluating.tasks.task import Task
from bge_cocktail.merging.merge import merge
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.options import EncodeOptions, EvaluateOptions, MergeOptions, TrainOptions
from bge_cocktail.training.encoder.train import train
from reproduction.tasks import examples_of, task_folder, training_records

FEW, MANY = 5, 100
# what searches and descents look at: each step reads all of them
SOME = 32
TRIALS = 20
STEPS = 20
SHARES = [0.3, 0.5, 0.7]
ANCHOR = 1.0
AVERAGED = 3


@dataclass(frozen=True)
class Bench:
    """What models are made with.

    Attributes:
        base: The base model.
        tasks: Names of the tasks, those of labels and of scores included.
        scored: The names of tasks whose records are pairs with scores.
        data: Where `prepare_tasks` wrote them.
        models: Where tuned models lie and merges are written.
        training: How models are tuned.
        encoding: How texts are embedded.
        seed: Of the trainings.
    """

    base: Path
    tasks: Sequence[str]
    scored: frozenset[str]
    data: Path
    models: Path
    training: TrainOptions
    encoding: EncodeOptions
    seed: int

    def tuned(self, task: str) -> Path:
        """Return the model that was tuned on a task."""
        return self.models / f"{self.seed}/{task}"

    def others(self, target: str) -> list[Path]:
        """Return the models that were tuned on the other tasks."""
        return [self.tuned(task) for task in self.tasks if task != target]

    def tune(self, task: str, output: Path, **changes: Any) -> Path:
        """Tune the base on a task; a model that is there already is kept."""
        if (output / "run.json").is_file():
            return output
        own: dict[str, Any] = {"loss": ["cosent"], "in_batch_negatives": False} if task in self.scored else {}
        options = self.training.model_copy(update={"seed": self.seed, **own, **changes})
        output.parent.mkdir(parents=True, exist_ok=True)
        return train(self.base, training_records(self.data, task), output, options, overwrite=True)


def merged(
    bench: Bench,
    models: Sequence[str | Path],
    output: Path,
    options: MergeOptions,
    *,
    target: str = "",
    examples: int = 0,
    judged: bool = False,
    general: Sequence[str] = (),
) -> Path:
    """Merge models; the target's dev chooses where weights are found.

    Args:
        bench: What there is.
        models: What is merged.
        output: The folder to write.
        options: How.
        target: Whose examples, or whose dev, the weights are found on.
        examples: How many examples are looked at.
        judged: Whether whole merges are judged on the dev of the target and of `general`.
        general: Other tasks.
    """
    known: list[Record] = examples_of(bench.data, target, examples) if examples else []
    score = None
    if judged:
        score = scorer(
            [task_folder(bench.data, target)],
            [task_folder(bench.data, name) for name in general],
            EvaluateOptions(split="dev", map_texts=0),
        )
    merge(models, output, options, examples=known, encoding=bench.encoding, score=score, overwrite=True)
    return output


Way = Callable[[Bench, str, Path], Path]
"""Makes the model of a target, in a folder that may be used."""


def _of_two(bench: Bench, target: str, output: Path) -> Path:
    return merged(bench, [bench.tuned(target), bench.base], output, MergeOptions(share=0.5))


def _of_ten(examples: int, **options: Any) -> Way:
    """The tuned model, the base and those of all other tasks."""

    def make(bench: Bench, target: str, output: Path) -> Path:
        models = [bench.tuned(target), bench.base, *bench.others(target)]
        return merged(bench, models, output, MergeOptions(**options), target=target, examples=examples)

    return make


def _pareto(bench: Bench, target: str, output: Path) -> Path:
    general = [task for task in bench.tasks if task != target]
    models = [bench.tuned(target), bench.base]
    options = MergeOptions(weights="pareto", shares=[0.0, *SHARES, 1.0])
    return merged(bench, models, output, options, target=target, judged=True, general=general)


def _auto(bench: Bench, target: str, output: Path) -> Path:
    general = [task for task in bench.tasks if task != target]
    models = [bench.tuned(target), *bench.others(target), bench.base]
    return merged(bench, models, output, MergeOptions(weights="auto"), target=target, judged=True, general=general)


def _sphere(bench: Bench, target: str, output: Path) -> Path:
    return merged(bench, [bench.tuned(target), bench.base], output, MergeOptions(method="karcher", share=0.5))


def _ties(bench: Bench, target: str, output: Path) -> Path:
    models = [bench.tuned(target), *bench.others(target)]
    options = MergeOptions(method="ties", base=str(bench.base), share=0.5)
    return merged(bench, models, output, options)


def _positioned(bench: Bench, target: str, output: Path) -> Path:
    models = [bench.tuned(target), *bench.others(target)]
    options = MergeOptions(method="task-arithmetic", base=str(bench.base), weights="self-positioning", steps=STEPS)
    return merged(bench, models, output, options, target=target, examples=SOME)


def _averaged(bench: Bench, target: str, output: Path) -> Path:
    return bench.tune(target, output, average=AVERAGED)


def _anchored(bench: Bench, target: str, output: Path) -> Path:
    return bench.tune(target, output, anchor=ANCHOR)


WAYS: dict[str, Way] = {
    "tuned": lambda bench, target, _: bench.tuned(target),
    "cocktail of 2": _of_two,
    "cocktail of 10, 5 examples": _of_ten(FEW, share=0.5, weights="cocktail"),
    "cocktail of 10, 100 examples": _of_ten(MANY, share=0.5, weights="cocktail"),
    "relative weights": _of_ten(MANY, share=0.5, weights="relative"),
    "gradient": _of_ten(SOME, weights="gradient", steps=STEPS),
    "search": _of_ten(SOME, weights="search", trials=TRIALS),
    "pareto": _pareto,
    "auto": _auto,
    "karcher": _sphere,
    "TIES": _ties,
    "self-positioning": _positioned,
    "anchored training": _anchored,
    "mean of the last three checkpoints": _averaged,
}
"""For a target, with a model that was tuned on it."""


def _new_task(examples: int, **options: Any) -> Way:
    """The base and the models of all other tasks, none of which has seen the target."""

    def make(bench: Bench, target: str, output: Path) -> Path:
        models = [bench.base, *bench.others(target)]
        return merged(bench, models, output, MergeOptions(**options), target=target, examples=examples)

    return make


def _best_single(bench: Bench, target: str, output: Path) -> Path:
    models = [bench.base, *bench.others(target)]
    known = examples_of(bench.data, target, FEW)
    found = merge(models, output, MergeOptions(weights="cocktail"), examples=known, encoding=bench.encoding)
    shutil.rmtree(output)
    return Path(models[int(np.argmin(found.losses))])


NEW_TASK_WAYS: dict[str, Way] = {
    "best single, 5 examples": _best_single,
    "uniform soup": _new_task(0),
    "cocktail, 5 examples": _new_task(FEW, weights="cocktail"),
    "relative weights, 5 examples": _new_task(FEW, weights="relative"),
    "search, 32 examples": _new_task(SOME, weights="search", trials=TRIALS),
}
"""For a target on which no model was tuned; all are judged on the target alone."""


def scores_of(model: Path, task_list: Sequence[Task], encoding: EncodeOptions) -> dict[str, Any]:
    """Return the main score of each task, with its values for each query or what was said of each pair."""
    encoder = CachedEncoder(model, encoding)
    found = evaluate(encoder, task_list, EvaluateOptions(map_texts=0))
    return {
        score.task: {
            "metric": score.metric,
            "value": score.value,
            "values": list(score.per_query.values()),
            "said": [] if score.per_query else list(score.answers.values()),
        }
        for score in found
        if score.main
    }
