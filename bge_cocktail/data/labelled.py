"""Labelled texts, scored pairs, candidates to rerank: folders of splits that models are judged by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import DataError, nearest
from bge_cocktail.data.readers import read_lines, required_text
from bge_cocktail.data.record import Text


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


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Pairs of texts and the score of each."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def binary(self) -> bool:
        """Whether the scores only say yes or no."""
        return set(self.scores) <= {0.0, 1.0}


def is_scored(path: Path) -> bool:
    """Whether a folder holds splits of scored pairs: JSON Lines with sentence1, sentence2 and score."""
    split = any_split(path)
    if split is None or (path / "corpus.jsonl").is_file():
        return False
    first = islice(read_lines(path / f"{split}.jsonl"), 1)
    return any({"sentence1", "sentence2", "score"} <= value.keys() for _, value in first)


def any_split(path: Path) -> str | None:
    """A split that the folder has, test if it can be."""
    return next((name for name in ("test", "dev", "train") if (path / f"{name}.jsonl").is_file()), None)


def read_scored(path: Path, split: str) -> ScoredPairs:
    """Read one split of a folder of scored pairs.

    Args:
        path: Folder with <split>.jsonl, each line ``{"sentence1": ..., "sentence2": ..., "score": ...}``.
        split: Which file to read.

    Raises:
        DataError: With file and line of what is wrong, or all scores are the same.
    """
    file = split_file(path, split)
    rows: list[tuple[str, str, float]] = []
    for where, value in read_lines(file):
        score = value.get("score")
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise DataError(f"{where}: 'score' must be a number, got {score!r}")
        rows.append((required_text(value, "sentence1", where), required_text(value, "sentence2", where), float(score)))
    if len({score for _, _, score in rows}) < 2:
        raise DataError(f"{file}: all scores are the same, or there are none; nothing can be correlated with them")
    return ScoredPairs(*(tuple(column) for column in zip(*rows, strict=True)))


KEYS = {"query", "positive", "negative"}


@dataclass(frozen=True, slots=True)
class Candidates:
    """A query and what is to be ordered for it."""

    query: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


def is_reranking(path: Path) -> bool:
    """Whether a folder holds splits of JSON Lines with query, positive and negative."""
    split = any_split(path)
    if split is None or (path / "corpus.jsonl").is_file():
        return False
    return any(value.keys() >= KEYS for _, value in islice(read_lines(path / f"{split}.jsonl"), 1))


def read_candidates(path: Path, split: str) -> list[Candidates]:
    """Read one split.

    Args:
        path: Folder with <split>.jsonl, each line ``{"query": ..., "positive": [...], "negative": [...]}``.
        split: Which file to read.

    Raises:
        DataError: With file and line of what is wrong.
    """
    file = split_file(path, split)
    found = [
        Candidates(
            required_text(value, "query", where), *(_texts(value, key, where) for key in ("positive", "negative"))
        )
        for where, value in read_lines(file)
    ]
    if not found:
        raise DataError(f"{file} is empty")
    return found


def _texts(value: dict[str, Any], key: str, where: Any) -> tuple[str, ...]:
    given = value.get(key)
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) and one.strip() for one in texts):
        raise DataError(f"{where}: '{key}' must hold one text or more, none empty, got {str(given)[:80]!r}")
    return tuple(texts)
