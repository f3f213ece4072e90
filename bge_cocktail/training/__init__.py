"""Tuning an encoder on records, on sentence-transformers' trainer."""

from bge_cocktail.training.checks import check_training
from bge_cocktail.training.fitting import Interrupted
from bge_cocktail.training.processes import is_first_process
from bge_cocktail.training.rows import TrainingRows
from bge_cocktail.training.searching import SPACE, search_options
from bge_cocktail.training.seeds import train_seeds
from bge_cocktail.training.tune import train, training_key

__all__ = [
    "SPACE",
    "Interrupted",
    "TrainingRows",
    "check_training",
    "is_first_process",
    "search_options",
    "train",
    "train_seeds",
    "training_key",
]
