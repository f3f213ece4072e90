"""What a classifier must know beside its weights to predict as it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from bge_cocktail.errors import DataError, UsageError
from bge_cocktail.hub import CLASSIFIER_FILE
from bge_cocktail.labels import config_labels, is_native
from bge_cocktail.layout import declared_length, read_object, tokenizer_length
from bge_cocktail.options.base import Options, checked


class Settings(Options):
    """What a classifier must know beside its weights; kept as classifier.json in its folder.

    Attributes:
        labels: Names of the classes, in the order of the logits.
        pairs: Whether it takes pairs of texts; None where nothing says it.
        multi_label: Whether a text may have any number of labels.
        max_length: Longest text (or pair) in tokens.
        truncation: What stays of longer ones.
        clean: Steps that every text goes through.
        temperature: Divides logits for calibrated probabilities.
        threshold: Probability from which a label of several counts.
    """

    labels: list[str]
    pairs: bool | None = None
    multi_label: bool = False
    max_length: int = Field(512, ge=1)
    truncation: Literal["head", "head+tail"] = "head"
    clean: list[str] = Field([])
    temperature: float = Field(1.0, gt=0)
    threshold: float = Field(0.5, gt=0, lt=1)

    @model_validator(mode="after")
    def _labels_tell_classes_apart(self) -> Settings:
        twice = next((name for name in self.labels if self.labels.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two classes are called '{twice}'")
        if len(self.labels) < (1 if self.multi_label else 2):
            raise ValueError("a classifier has two labels or more; a model of one score ranks or measures")
        return self


def read_settings(folder: Path) -> Settings:
    """The settings of a classifier; of one that isn't ours, what its config says.

    Raises:
        DataError: It is no classifier, or its settings are broken.
    """
    path = folder / CLASSIFIER_FILE
    if path.is_file():
        return _checked(path, read_object(path))
    path = folder / "config.json"
    config = read_object(path) if path.is_file() else {}
    names = config_labels(config)
    if not is_native(config) or not names:
        raise DataError(
            f"{folder} is no classifier: it has no classification head and no label names; "
            "make one of it: bge-cocktail classify train DATA -m MODEL -o FOLDER"
        )
    given = {
        "labels": names,
        "multi_label": config.get("problem_type") == "multi_label_classification",
        "max_length": declared_length(folder) or tokenizer_length(folder) or 512,
    }
    return _checked(path, given)


def _checked(path: Path, given: dict[str, object]) -> Settings:
    try:
        settings: Settings = checked(Settings, given)
    except UsageError as error:
        raise DataError(f"{path}: {error}") from None
    return settings
