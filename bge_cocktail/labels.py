"""What a model's folder says of the labels that it predicts; nothing where it is an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bge_cocktail.errors import DataError
from bge_cocktail.hub import CLASSIFIER_FILE
from bge_cocktail.layout import read_object

_NATIVE = "ForSequenceClassification"


def is_native(config: dict[str, Any]) -> bool:
    """Whether a config is of a transformers model with a classification head."""
    return any(str(one).endswith(_NATIVE) for one in config.get("architectures") or ())


def is_classifier(folder: Path) -> bool:
    """Whether a folder is of a classifier, ours or transformers'."""
    return (folder / CLASSIFIER_FILE).is_file() or is_native(_config(folder))


def config_labels(config: dict[str, Any]) -> list[str]:
    """The labels that a config of transformers names, in the order of the logits; often none.

    Raises:
        DataError: Their keys are no numbers.
    """
    names = config.get("id2label")
    if not isinstance(names, dict):
        return []
    if wrong := [key for key in names if not str(key).isdecimal()]:
        raise DataError(f"config.json: the keys of id2label are numbers, got '{wrong[0]}'")
    return [str(names[key]) for key in sorted(names, key=int)]


def declared_labels(folder: Path) -> list[str]:
    """The labels of a classifier, in the order of its logits; none where nothing says them."""
    path = folder / CLASSIFIER_FILE
    names = read_object(path).get("labels") if path.is_file() else config_labels(_config(folder))
    return [str(name) for name in names or ()]


def is_multi_label(folder: Path) -> bool:
    """Whether a classifier gives a text any number of labels."""
    path = folder / CLASSIFIER_FILE
    if path.is_file():
        return bool(read_object(path).get("multi_label"))
    return _config(folder).get("problem_type") == "multi_label_classification"


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_object(path) if path.is_file() else {}
