"""The same training with several seeds, and the soup of their models; and a search for good options."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bge_cocktail.core.devices import choose_device, resolve_precision
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
    refuse_to_replace(output, overwrite, [base])
    refuse_several("`seeds`")
    watched = open_watched(general)

    def run_of(seed: int) -> Repeated:
        own = checked(TrainOptions, {**options.model_dump(), "seed": seed})

        def train_seed(folder: Path, again: bool) -> None:
            train(base, records, folder, own, dev=dev, general=watched, resume=again, overwrite=True)

        return Repeated(f"seed {seed}", training_key(base, records, own, dev), train_seed, _result)

    def describe(new: Path, folders: Sequence[Path], results: RepeatedResult) -> dict[str, Any]:
        from bge_cocktail.merging.merge import merge

        merge(folders, new / SOUP, MergeOptions(weights="uniform"))
        inputs = [hash_path(model_folder(base)), hash_records(records), hash_retrieval(dev)]
        return describe_run(
            "train",
            options={**options.model_dump(mode="json"), "seeds": list(seeds)},
            inputs=dict(zip((str(base), "records", "dev"), inputs, strict=True)),
            **results,
            soup=_soup_scores(new / SOUP, dev, watched, options),
        )

    places = sorted(str(task.path) for task in watched)
    key = hash_value([training_key(base, records, options, dev), places])
    runs = {f"seed-{seed}": run_of(seed) for seed in seeds}
    return repeat_training(runs, output, "training with seeds", key, describe, resume=resume, overwrite=overwrite)


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
