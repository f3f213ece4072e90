"""Labelled texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bge_cocktail.errors import DataError, nearest
from bge_cocktail.records.lines import read_lines, required_text


@dataclass(frozen=True, slots=True)
class Labelled:
    """Texts and the label of each."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]


def is_labelled(path: Path) -> bool:
    """Whether a folder holds splits of labelled texts."""
    return (path / "train.jsonl").is_file() and not (path / "corpus.jsonl").is_file()


def read_labelled(path: Path, split: str) -> Labelled:
    """Read one split of a folder of labelled texts.

    Args:
        path: Folder with <split>.jsonl, each line ``{"text": ..., "label": ...}``.
        split: Which file to read.

    Raises:
        DataError: With file and line of what is wrong.
    """
    file = path / f"{split}.jsonl"
    if not file.is_file():
        raise DataError(f"{file}: no such split.{nearest(split, (other.stem for other in path.glob('*.jsonl')))}")
    texts: list[str] = []
    labels: list[str] = []
    for where, value in read_lines(file):
        texts.append(required_text(value, "text", where))
        label = value.get("label")
        if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
            raise DataError(f"{where}: 'label' must be a text or a whole number, got {label!r}")
        labels.append(str(label))
    if not texts:
        raise DataError(f"{file} is empty")
    return Labelled(tuple(texts), tuple(labels))
