"""What is refused before a classifier is trained."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bge_cocktail.classifying.data import ClassData
from bge_cocktail.errors import DataError, UsageError
from bge_cocktail.options import Classifying
from bge_cocktail.training.common_checks import problems_of_tuning

_NOT_FEW_SHOT = (
    "head",
    "head_layers",
    "head_dropout",
    "head_learning_rate",
    "loss",
    "label_smoothing",
    "multi_label",
    "anchor",
    "freeze_encoder",
    "truncation",
)


def check_classifying(folder: Path, options: Classifying) -> None:
    """Refuse options that can't go together, or with the model.

    Raises:
        UsageError: All that is wrong.
    """
    problems = []
    if options.focal_gamma != 2 and options.loss != "focal":
        problems.append("focal_gamma goes with loss=focal")
    if options.threshold != 0.5 and not options.multi_label:
        problems.append("threshold goes with multi_label: without it, the likeliest label is predicted")
    if options.freeze_encoder and (options.lora or options.anchor or options.freeze_layers or options.reinit_layers):
        problems.append("freeze_encoder keeps the encoder as it is; lora, anchor, freeze_layers, reinit_layers don't")
    if options.few_shot:
        problems += [
            f"{name} goes with a head that is tuned; leave it out, or few_shot, which fits a logistic one"
            for name in _NOT_FEW_SHOT
            if getattr(options, name) != getattr(Classifying(), name)
        ]
        if options.patience != Classifying().patience:
            problems.append("patience does nothing in few_shot, which doesn't watch dev")
    elif options.pairs_per_text != Classifying().pairs_per_text:
        problems.append("pairs_per_text goes with few_shot")
    if not options.augment:
        problems += [
            f"{name} goes with augment"
            for name in ("augment_share", "word_share", "thesaurus", "wordnet_dir", "thesaurus_file")
            if getattr(options, name) != getattr(Classifying(), name)
        ]
    problems += problems_of_tuning(folder, options)
    if problems:
        raise UsageError("\n".join(problems))


def check_data(data: ClassData, options: Classifying) -> None:
    """Refuse data that a training can't learn from, or that options do nothing for.

    Raises:
        UsageError: An option is for single texts, and these are pairs.
        DataError: All weights are zero; in few_shot, a class has fewer than two texts.
    """
    if data.pairs and options.truncation != "head":
        raise UsageError("truncation=head+tail is for single texts; of a pair, the longer text loses its end first")
    if data.pairs and options.few_shot:
        raise UsageError("few_shot is for single texts; pairs need a head that is tuned")
    if not any(data.train.weights):
        raise DataError("all texts of train have the weight 0, so nothing would be learned")
    if options.few_shot:
        counts = Counter(number for own in data.train.labels for number in own)
        lacking = [name for number, name in enumerate(data.names) if counts[number] < 2]
        if lacking:
            raise DataError(
                f"few_shot makes pairs of texts of one class, and train has fewer than two of '{lacking[0]}'"
                + (f" and {len(lacking) - 1} more classes" if lacking[1:] else "")
            )
