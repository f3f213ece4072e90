"""The same classifier trained several times: other seeds, folds of a cross-validation, a search."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import UsageError
from bge_cocktail.core.outputs import read_object, refuse_to_replace
from bge_cocktail.core.runs import RUN_FILE, describe_run, hash_path, hash_value
from bge_cocktail.data.labelled import LabelledTexts
from bge_cocktail.data.record import pair_key
from bge_cocktail.models.folder import model_folder
from bge_cocktail.options import ClassifyOptions, PredictOptions, checked
from bge_cocktail.training.classifier.data import ClassifierData
from bge_cocktail.training.classifier.evaluate import dev_metrics
from bge_cocktail.training.classifier.model import load_classifier
from bge_cocktail.training.classifier.predict import logits_of
from bge_cocktail.training.classifier.train import check_classifying, train_classifier, training_key
from bge_cocktail.training.engine.processes import refuse_several
from bge_cocktail.training.engine.repeat import (
    Repeated,
    RepeatedResult,
    Report,
    SearchResult,
    Space,
    check_seeds,
    repeat_training,
    search,
)

log = logging.getLogger(__name__)
Runs = Mapping[str, tuple[ClassifierData, ClassifyOptions]]


def seed_runs(data: ClassifierData, options: ClassifyOptions, seeds: Sequence[int]) -> Runs:
    """Return one run for each seed, which also draws its own texts where `per_class` says how many.

    Raises:
        UsageError: Fewer than two seeds, or one twice.
    """
    check_seeds(seeds)
    return {f"seed-{seed}": (data, checked(ClassifyOptions, {**options.model_dump(), "seed": seed})) for seed in seeds}


def fold_runs(data: ClassifierData, options: ClassifyOptions, folds: int) -> Runs:
    """Cross-validation over train and dev: each fold is dev once; stratified, the same text is in one fold.

    Texts of dev that are also in test are left out, for they would be learned in the other folds.

    Raises:
        UsageError: Fewer than two folds, or a class with fewer texts than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    joined = data.train.joined(data.dev)
    joined = joined.at(row for row, text in enumerate(joined.texts) if pair_key(text) not in data.held)
    least = min(Counter(number for labels in joined.labels for number in labels).values())
    if not 2 <= folds <= least:
        raise UsageError(f"folds={folds}: allowed are 2 to {least}, for the rarest class has {least} texts")
    counts = Counter(joined.labels)
    # sets of labels that are too rare to be in every fold are spread as one
    strata = [",".join(map(str, labels)) if counts[labels] >= folds else "rare" for labels in joined.labels]
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=options.seed)
    groups = [pair_key(text) for text in joined.texts]
    runs = {}
    for number, (rest, held) in enumerate(splitter.split(joined.texts, strata, groups), start=1):
        train, dev = joined.at(rest.tolist()), joined.at(held.tolist())
        name = f"fold-{number}"
        runs[name] = (replace(data, train=train, dev=dev, hash=hash_value([data.hash, name])), options)
    return runs


def train_runs(
    base: str | Path,
    runs: Runs,
    output: Path,
    *,
    test: LabelledTexts | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> RepeatedResult:
    """Train each run and put their results beside each other.

    Writes a folder with one classifier for each run, and run.json with every result, their means and standard
    deviations. What is finished when it is cut off is kept in ``<output>.unfinished`` for `resume`.

    Args:
        base: Folder or hub name of the encoder.
        runs: From `seed_runs` or `fold_runs`.
        output: The folder to write.
        test: MergeScores by each classifier, too; the runs' own where they hold one out.
        resume: Go on with what was cut off.
        overwrite: Replace an older output of this tool.

    Returns:
        The results, as run.json has them.
    """
    refuse_to_replace(output, overwrite, [base])
    refuse_several("several runs")
    keys = {name: training_key(base, data, options) for name, (data, options) in runs.items()}

    def repeated(name: str, data: ClassifierData, options: ClassifyOptions) -> Repeated:
        def train_run(folder: Path, again: bool) -> None:
            train_classifier(base, data, folder, options, resume=again, overwrite=True)

        return Repeated(name, keys[name], train_run, lambda folder: _result(folder, options, data.test or test))

    def describe(_new: Path, _folders: Sequence[Path], results: RepeatedResult) -> dict[str, Any]:
        options = next(iter(runs.values()))[1]
        return describe_run(
            "classify train",
            options={**options.model_dump(mode="json"), "runs": list(runs)},
            inputs={str(base): hash_path(model_folder(base)), **keys},
            **results,
        )

    return repeat_training(
        {name: repeated(name, *run) for name, run in runs.items()},
        output,
        "training of several classifiers",
        hash_value(keys),
        describe,
        resume=resume,
        overwrite=overwrite,
    )


def _result(folder: Path, options: ClassifyOptions, test: LabelledTexts | None) -> dict[str, float]:
    described = read_object(folder / RUN_FILE)
    metrics = {f"dev {options.metric}": described["dev_best"]}
    if test is not None and len(test):
        classifier = load_classifier(folder, device=options.device)
        predicting = PredictOptions(device=options.device)
        logits = logits_of(classifier.model, test.texts, options.truncation, predicting, "test")
        metrics |= {f"test {name}": value for name, value in dev_metrics(logits, test, options).items()}
    return metrics


SPACE: Space = {
    "learning_rate": ("log", 5e-6, 5e-4),
    "head_learning_rate": ("log", 1e-5, 1e-2),
    "batch_size": ("one of", 8, 16, 32, 64),
    "epochs": ("one of", 1, 2, 3, 5, 8),
    "layer_decay": ("one of", 1.0, 0.95, 0.9, 0.8),
    "weight_decay": ("one of", 0.0, 0.01, 0.1),
    "label_smoothing": ("one of", 0.0, 0.05, 0.1),
    "head_dropout": ("one of", 0.0, 0.1, 0.3, 0.5),
    "pairs_per_text": ("one of", 5, 10, 20, 40),
}
"""What can be searched, and where; see `training.searching.SPACE`."""


def search_classifier(
    base: str | Path,
    data: ClassifierData,
    output: Path,
    options: ClassifyOptions,
    names: Sequence[str],
    *,
    trials: int,
    resume: bool = False,
    overwrite: bool = False,
) -> SearchResult:
    """Train classifiers with options that Optuna proposes, and keep the best by dev; as `training.search_options`.

    Args:
        base: Folder or hub name of the encoder.
        data: From `read_class_data`.
        output: The folder to write.
        options: All that isn't searched.
        names: What is searched, of `SPACE`.
        trials: How many in all.
        resume: Go on with a search that was cut off.
        overwrite: Replace an older output of this tool.

    Returns:
        ``trials``, ``importance`` of each option, ``best``.

    Raises:
        UsageError: An unknown name, options that can't go together, or Optuna isn't here.
    """
    refuse_to_replace(output, overwrite, [base])
    folder = model_folder(base)
    check_classifying(folder, options)
    for name in names:
        if name in SPACE:  # what does nothing with the other options is said before the first trial
            check_classifying(folder, options.model_copy(update={name: SPACE[name][-1]}))

    def attempt(proposed: ClassifyOptions, folder: Path, report: Report) -> None:
        train_classifier(base, data, folder, proposed, overwrite=True, report=report)

    key = training_key(base, data, options)
    return search(
        output, options, names, SPACE, attempt, key, options.metric, trials, resume=resume, overwrite=overwrite
    )
