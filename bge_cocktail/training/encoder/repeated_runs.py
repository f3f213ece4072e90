"""The same training with several seeds, or on samples, and the soup of their models; a search for good options."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bge_cocktail.core.devices import choose_device, resolve_precision
from bge_cocktail.core.errors import UsageError
from bge_cocktail.core.outputs import read_object, refuse_to_replace
from bge_cocktail.core.runs import RUN_FILE, describe_run, hash_path, hash_value
from bge_cocktail.data.beir import RetrievalData
from bge_cocktail.data.record import Record
from bge_cocktail.evaluating.evaluate import TaskPath
from bge_cocktail.models.encoder import load_encoder
from bge_cocktail.models.folder import model_folder
from bge_cocktail.models.prompts import model_prompts
from bge_cocktail.options import MergeOptions, TrainOptions, checked
from bge_cocktail.training.encoder.checks import check_pairs, check_training
from bge_cocktail.training.encoder.train import train, training_key
from bge_cocktail.training.encoder.training_pairs import TrainingPairs, hash_records, hash_retrieval
from bge_cocktail.training.encoder.validation import open_watched
from bge_cocktail.training.engine.processes import refuse_several
from bge_cocktail.training.engine.repeat import (
    Repeated,
    RepeatedResult,
    Report,
    SearchResult,
    Space,
    check_names,
    check_seeds,
    repeat_training,
    search,
)

log = logging.getLogger(__name__)
SOUP = "soup"


def train_seeds(
    base: str | Path,
    records: Sequence[Record],
    output: Path,
    options: TrainOptions,
    seeds: Sequence[int],
    *,
    dev: RetrievalData | None = None,
    general: Sequence[TaskPath] = (),
    resume: bool = False,
    overwrite: bool = False,
) -> RepeatedResult:
    """Train once with each seed and merge the models (model soups, arXiv:2203.05482).

    Writes a folder with ``seed-N/`` for each, ``soup/`` and run.json with every result, their means and standard
    deviations. What is finished when a run is cut off is kept in ``<output>.unfinished`` for `resume`.

    Args:
        base: Folder or hub name of the model to tune.
        records: What to tune on.
        output: The folder to write.
        options: How to tune; their seed is replaced.
        seeds: Two or more.
        dev: See `train`.
        general: See `train`.
        resume: Go on with what was cut off.
        overwrite: Replace an older output of this tool.

    Returns:
        The results, as run.json has them.

    Raises:
        UsageError: Fewer than two seeds, or one twice.
    """
    check_seeds(seeds)
    parts = {f"seed-{seed}": (records, checked(TrainOptions, {**options.model_dump(), "seed": seed})) for seed in seeds}
    merging = MergeOptions(weights="uniform")
    given = {"seeds": list(seeds)}
    return _train_and_merge(base, records, output, options, parts, merging, given, dev, general, resume, overwrite)


REST = "rest"


def train_bagged(
    base: str | Path,
    records: Sequence[Record],
    output: Path,
    options: TrainOptions,
    samples: Sequence[str],
    *,
    dev: RetrievalData | None = None,
    general: Sequence[TaskPath] = (),
    resume: bool = False,
    overwrite: bool = False,
) -> RepeatedResult:
    """Train on samples of each data set and merge the models on the sphere (BOOM, arXiv:2602.05787).

    Writes a folder with ``sample-N/`` for each, ``soup/`` and run.json; see `train_seeds`. The models of 80 and 100
    percent cost 1.8 times one training; 50 and the rest cost as much as one.

    Args:
        base: See `train_seeds`.
        records: What samples are drawn of, without replacement, of each task alike.
        output: The folder to write.
        options: How to tune; their seed draws the samples too.
        samples: Percentages, two or more; ``rest`` is what the first leaves.
        dev: See `train`.
        general: See `train`.
        resume: Go on with what was cut off.
        overwrite: Replace an older output of this tool.

    Raises:
        UsageError: Fewer than two samples, one twice, or one that is no percentage.
    """
    parts = {f"sample-{name}": (sample, options) for name, sample in samples_of(records, samples, options.seed).items()}
    merging = MergeOptions(method="karcher")
    given = {"bag": list(samples)}
    return _train_and_merge(base, records, output, options, parts, merging, given, dev, general, resume, overwrite)


def samples_of(records: Sequence[Record], samples: Sequence[str], seed: int) -> dict[str, list[Record]]:
    """Return seeded draws of each task's records, in their order.

    Args:
        records: All of them.
        samples: Percentages, or ``rest``: what the first sample leaves.
        seed: Seeds the draws, each sample its own.

    Raises:
        UsageError: Fewer than two, one twice, or one that is no percentage from 1 to 100.
    """
    names = [sample.strip() for sample in samples]
    wrong = next((name for name in names if name != REST and not (name.isdecimal() and 1 <= int(name) <= 100)), None)
    if wrong is not None or len(names) < 2 or len(set(names)) < len(names) or names[0] == REST:
        shown = ",".join(names) or "nothing"
        raise UsageError(f"bag: two percentages or more (80,100), or one and the rest (50,rest); got {shown}")
    drawn = {name: set(draw_of_tasks(records, int(name) / 100, [seed, int(name)])) for name in names if name != REST}
    if REST in names:
        drawn[REST] = set(range(len(records))) - drawn[names[0]]
    return {name: [records[place] for place in sorted(drawn[name])] for name in names}


def draw_of_tasks(records: Sequence[Record], share: float, seed: int | list[int]) -> list[int]:
    """Return the places of a seeded draw of so large a share of each task's records, in their order."""
    places: dict[str | None, list[int]] = {}
    for place, record in enumerate(records):
        places.setdefault(record.task, []).append(place)
    generator = np.random.default_rng(seed)
    return sorted(
        place for own in places.values() for place in generator.permutation(own)[: math.ceil(share * len(own))].tolist()
    )


def _train_and_merge(
    base: str | Path,
    records: Sequence[Record],
    output: Path,
    options: TrainOptions,
    parts: Mapping[str, tuple[Sequence[Record], TrainOptions]],
    merging: MergeOptions,
    given: Mapping[str, Any],
    dev: RetrievalData | None,
    general: Sequence[TaskPath],
    resume: bool,
    overwrite: bool,
) -> RepeatedResult:
    """Train each part, by the name of its folder, and merge the models; see `train_seeds`."""
    refuse_to_replace(output, overwrite, [base])
    what = next(iter(given))
    refuse_several(f"`{what}`")
    watched = open_watched(general)

    def run_of(name: str, own_records: Sequence[Record], own: TrainOptions) -> Repeated:
        def train_part(folder: Path, again: bool) -> None:
            train(base, own_records, folder, own, dev=dev, general=watched, resume=again, overwrite=True)

        return Repeated(name.replace("-", " "), training_key(base, own_records, own, dev), train_part, _result)

    def describe(new: Path, folders: Sequence[Path], results: RepeatedResult) -> dict[str, Any]:
        from bge_cocktail.merging.merge import merge

        merge(folders, new / SOUP, merging)
        inputs = [hash_path(model_folder(base)), hash_records(records), hash_retrieval(dev)]
        return describe_run(
            "train",
            options={**options.model_dump(mode="json"), **given},
            inputs=dict(zip((str(base), "records", "dev"), inputs, strict=True)),
            **results,
            soup=_soup_scores(new / SOUP, dev, watched, options),
        )

    places = sorted(str(task.path) for task in watched)
    key = hash_value([training_key(base, records, options, dev), places, *([dict(given)] if what != "seeds" else [])])
    runs = {name: run_of(name, *part) for name, part in parts.items()}
    return repeat_training(runs, output, f"training with {what}", key, describe, resume=resume, overwrite=overwrite)


def _result(folder: Path) -> dict[str, float]:
    """Return what is compared between seeds."""
    described = read_object(folder / RUN_FILE)
    metrics = {
        "final loss": described["final_loss"],
        "dev before": described["dev_before"],
        "dev": described["dev_best"],
    }
    metrics |= {f"general {name}": after for name, (_, after) in described["general"].items()}
    return {name: value for name, value in metrics.items() if value is not None}


def _soup_scores(
    folder: Path, dev: RetrievalData | None, general: Sequence[TaskPath], options: TrainOptions
) -> dict[str, float]:
    """Return the soup's scores on what the seeds were judged on: ``dev``, ``general NAME``; empty without such."""
    from bge_cocktail.training.encoder.validation import make_validation
    from bge_cocktail.training.engine.run import PRIMARY

    device = choose_device(options.device)
    metrics = make_validation(
        dev, general, options, model_prompts(folder), resolve_precision(options.precision, device)
    )
    if metrics is None:
        return {}
    values = metrics(load_encoder(folder, device=device, max_length=options.max_length))
    scores = {"dev": values[PRIMARY]} if PRIMARY in values else {}
    return scores | {name.replace("_", " ", 1): value for name, value in values.items() if name.startswith("general_")}


SPACE: Space = {
    "learning_rate": ("log", 1e-6, 2e-4),
    "temperature": ("log", 0.01, 0.2),
    "batch_size": ("one of", 8, 16, 32, 64, 128),
    "epochs": ("one of", 1, 2, 3, 5),
    "negatives": ("one of", 0, 1, 3, 7, 15),
}
"""What can be searched, and where: between two numbers on a logarithmic scale, or one of some."""


def search_options(
    base: str | Path,
    records: Sequence[Record],
    output: Path,
    options: TrainOptions,
    names: Sequence[str],
    *,
    trials: int,
    dev: RetrievalData,
    general: Sequence[TaskPath] = (),
    resume: bool = False,
    overwrite: bool = False,
) -> SearchResult:
    """Train with options that Optuna proposes; the first trial has the given ones, and the best model is kept.

    Trials that fall behind the others at the same evaluation are ended (median pruning). While it runs, the study
    (SQLite) and the best model so far are in ``<output>.search``; a search that was cut off goes on with `resume`,
    the trial that was running begins again.

    Args:
        base: Folder or hub name of the model to tune.
        records: What to tune on.
        output: The folder to write: the best model, `PICTURE_FILE`, and in run.json the trials.
        options: All that isn't searched.
        names: What is searched, of `SPACE`.
        trials: How many in all.
        dev: Judges the trials.
        general: See `train`.
        resume: Go on with a search that was cut off.
        overwrite: Replace an older output of this tool.

    Returns:
        ``trials``, ``importance`` of each option, ``best``.

    Raises:
        UsageError: An unknown name, or Optuna isn't here.
    """
    check_names(names, SPACE)
    refuse_to_replace(output, overwrite, [base])
    # what is wrong in every trial is said before the first
    watched = open_watched(general)
    check_training(model_folder(base), options, watched)
    check_pairs(TrainingPairs(records, options), options)

    def attempt(proposed: TrainOptions, folder: Path, report: Report) -> None:
        train(base, records, folder, proposed, dev=dev, general=watched, overwrite=True, report=report)

    key = training_key(base, records, options, dev)
    return search(output, options, names, SPACE, attempt, key, "nDCG@10", trials, resume=resume, overwrite=overwrite)
