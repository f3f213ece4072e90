"""Labelled texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bge_cocktail.errors import DataError, nearest
from bge_cocktail.records.lines import read_lines, required_text

Text = str | tuple[str, str]
"""One text, or a pair such as premise and hypothesis."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Texts, or pairs of texts, and the label of each."""

    texts: tuple[Text, ...]
    labels: tuple[str, ...]


def is_labelled(path: Path) -> bool:
    """Whether a folder holds splits of labelled texts."""
    return (path / "train.jsonl").is_file() and not (path / "corpus.jsonl").is_file()


def read_labelled(path: Path, split: str) -> Labelled:
    """Read one split of a folder of labelled texts.

    Args:
        path: Folder with <split>.jsonl, each line ``{"text": ..., "label": ...}``, or premise, hypothesis and label.
        split: Which file to read.

    Raises:
        DataError: With file and line of what is wrong.
    """
    file = split_file(path, split)
    texts: list[Text] = []
    labels: list[str] = []
    for where, value in read_lines(file):
        if "premise" in value:
            texts.append((required_text(value, "premise", where), required_text(value, "hypothesis", where)))
        else:
            texts.append(required_text(value, "text", where))
        label = value.get("label")
        if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
            raise DataError(f"{where}: 'label' must be a text or a whole number, got {label!r}")
        labels.append(str(label))
    if not texts:
        raise DataError(f"{file} is empty")
    if len({isinstance(text, tuple) for text in texts}) > 1:
        raise DataError(f"{file} holds single texts and pairs; a task has one or the other")
    return Labelled(tuple(texts), tuple(labels))


def split_file(path: Path, split: str) -> Path:
    """The file of a split.

    Raises:
        DataError: There is none; with the nearest name.
    """
    file = path / f"{split}.jsonl"
    if not file.is_file():
        raise DataError(f"{file}: no such split.{nearest(split, (other.stem for other in path.glob('*.jsonl')))}")
    return file
