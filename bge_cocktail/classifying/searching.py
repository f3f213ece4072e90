"""A search for good options of a classifier's training, by its dev metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bge_cocktail.classifying.checks import check_classifying
from bge_cocktail.classifying.data import ClassData
from bge_cocktail.classifying.tune import train_classifier, training_key
from bge_cocktail.hub import model_folder
from bge_cocktail.options import Classifying
from bge_cocktail.outputs import refuse_to_replace
from bge_cocktail.training.searching import Report, Space, search

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
    data: ClassData,
    output: Path,
    options: Classifying,
    names: Sequence[str],
    *,
    trials: int,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
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

    def attempt(proposed: Classifying, folder: Path, report: Report) -> None:
        train_classifier(base, data, folder, proposed, overwrite=True, report=report)

    key = training_key(base, data, options)
    return search(
        output, options, names, SPACE, attempt, key, options.metric, trials, resume=resume, overwrite=overwrite
    )
