"""Queries, each with candidates of its own: those that are relevant, and others."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bge_cocktail.errors import DataError
from bge_cocktail.records.labelled import split_file
from bge_cocktail.records.lines import read_lines, required_text
from bge_cocktail.records.scored import any_split

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
