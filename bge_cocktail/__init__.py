"""Tune text-embedding models on your own data without losing what they already knew."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bge_cocktail.classifying import (
        load_classifier,
        merge_classifiers,
        predict,
        read_class_data,
        train_classifier,
    )
    from bge_cocktail.encoding import CachedEncoder, Encoder, load_encoder
    from bge_cocktail.errors import CocktailError
    from bge_cocktail.flow import run
    from bge_cocktail.merging import merge
    from bge_cocktail.mining import Mined, mine
    from bge_cocktail.records import Record, read_records, write_records
    from bge_cocktail.tasks import Score, evaluate, open_task
    from bge_cocktail.training import train

# loaded on demand, so that importing the package (and --help) never imports torch
_HOMES = {
    "CachedEncoder": "encoding",
    "CocktailError": "errors",
    "Encoder": "encoding",
    "Mined": "mining",
    "Record": "records",
    "Score": "tasks",
    "evaluate": "tasks",
    "load_classifier": "classifying",
    "load_encoder": "encoding",
    "merge": "merging",
    "merge_classifiers": "classifying",
    "mine": "mining",
    "open_task": "tasks",
    "predict": "classifying",
    "read_class_data": "classifying",
    "read_records": "records",
    "run": "flow",
    "train": "training",
    "train_classifier": "classifying",
    "write_records": "records",
}
__all__ = [
    "CachedEncoder",
    "CocktailError",
    "Encoder",
    "Mined",
    "Record",
    "Score",
    "evaluate",
    "load_classifier",
    "load_encoder",
    "merge",
    "merge_classifiers",
    "mine",
    "open_task",
    "predict",
    "read_class_data",
    "read_records",
    "run",
    "train",
    "train_classifier",
    "write_records",
]

try:
    __version__ = version("bge-cocktail")
except PackageNotFoundError:  # a checkout that isn't installed
    __version__ = "0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bge_cocktail' has no attribute '{name}'")
    return getattr(import_module(f"bge_cocktail.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
