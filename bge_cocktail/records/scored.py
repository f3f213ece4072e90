"""Pairs of texts with a score: how alike they are, or whether they belong together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bge_cocktail.errors import DataError
from bge_cocktail.records.labelled import split_file
from bge_cocktail.records.lines import read_lines, required_text


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
