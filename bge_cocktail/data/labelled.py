"""Folders of data by split, and what they hold: labelled texts, scored pairs, candidates to rerank."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import DataError, nearest
from bge_cocktail.data.columns import SEPARATOR
from bge_cocktail.data.examples import Change, Example, LabelledText, TextPair
from bge_cocktail.data.readers import BadRows, kind_of, required_text, rows_of_file
from bge_cocktail.data.record import Text
from bge_cocktail.data.sources import examples_of_rows, files_of_split, split_of

log = logging.getLogger(__name__)


DEV_NAMES = frozenset({"validation", "valid", "val"})


class DataFolder:
    """A folder with a file or more for each split (JSON Lines, CSV, TSV, Parquet; plain or compressed).

    A file is opened once, until `forget`, whether its first row or all rows are asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[tuple[Path, ...], list[tuple[str, Any]]] = {}

    @cached_property
    def splits(self) -> frozenset[str]:
        """The names of the splits."""
        if not self.path.is_dir():
            return frozenset()
        return frozenset(split_of(file) for file in self.path.iterdir() if file.is_file() and kind_of(file))

    def holds(self, name: str) -> bool:
        """Return whether there is a file or folder of this name."""
        return (self.path / name).exists()

    @property
    def any_split(self) -> str | None:
        """A split that the folder has, test if it can be."""
        return next((split for split in ("test", "dev", "train") if split in self.splits), None)

    def first_row(self) -> dict[str, Any]:
        """Return the first row of `any_split`; empty where there is none, or it is no object."""
        split = self.any_split
        if split is None:
            return {}
        try:
            rows: Sequence[tuple[str, Any]] = self.split_rows(split)
        except DataError:
            # what is broken further down is said where it is read
            rows = list(islice(chain.from_iterable(rows_of_file(file, BadRows()) for file in self.files(split)), 1))
        return rows[0][1] if rows and isinstance(rows[0][1], dict) else {}

    def split_rows(self, split: str) -> Sequence[tuple[str, Any]]:
        """Return all rows of a split, each with ``file:line``.

        Raises:
            DataError: There is no such split, or the file is broken.
        """
        files = self.files(split)
        key = tuple(files)
        if key not in self._rows:
            self._rows[key] = list(chain.from_iterable(rows_of_file(file, BadRows()) for file in files))
        return self._rows[key]

    def files(self, split: str) -> list[Path]:
        """Return the files of a split: the one that bears its name, or its numbered parts.

        Raises:
            DataError: There is none; with the nearest name.
        """
        exact = [self.path / f"{split}.jsonl"]
        if exact[0].is_file():
            return exact
        tables = [file for file in self.path.glob("*") if file.is_file() and kind_of(file)]
        exact = [file for file in tables if file.name.split(".")[0] == split]
        if len(exact) == 1:
            return exact
        usual = "dev" if split in DEV_NAMES else split
        if usual not in self.splits:
            raise DataError(f"{self.path}/{split}.jsonl: no such split.{nearest(split, sorted(self.splits))}")
        return files_of_split(self.path, usual)

    def file(self, split: str) -> Path:
        """Return the (first) file of a split; see `files`."""
        return self.files(split)[0]

    def forget(self) -> None:
        """Let go of the rows, once they are what they are read for."""
        self._rows.clear()


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """Texts, or pairs of texts, with their labels.

    Attributes:
        texts: Texts, or pairs.
        labels: Of each, the numbers of its labels; one, unless a text may have several.
        weights: Of each in a loss.
        names: Of the labels, in the order of their numbers; empty where they are kept elsewhere.
    """

    texts: list[Text] = field(default_factory=list)
    labels: list[tuple[int, ...]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def pairs(self) -> bool:
        """Whether there are pairs among the texts."""
        return any(isinstance(text, tuple) for text in self.texts)

    def at(self, rows: Iterable[int]) -> LabelledTexts:
        """Return some of them."""
        chosen = list(rows)
        texts, labels = [self.texts[row] for row in chosen], [self.labels[row] for row in chosen]
        return LabelledTexts(texts, labels, [self.weights[row] for row in chosen], self.names)

    def joined(self, other: LabelledTexts) -> LabelledTexts:
        """Return these, then others."""
        return LabelledTexts(
            self.texts + other.texts, self.labels + other.labels, self.weights + other.weights, self.names
        )

    def classes(self) -> NDArray[np.int64]:
        """Return the number of the one label of each text, shape (texts,)."""
        return np.array([labels[0] for labels in self.labels], np.int64)

    def class_names(self) -> list[str]:
        """Return the name of the one label of each text."""
        return [self.names[labels[0]] for labels in self.labels]

    def targets(self, classes: int) -> NDArray[np.float32]:
        """Return 1 where a text has a label, shape (texts, classes)."""
        targets = np.zeros((len(self), classes), np.float32)
        for row, labels in enumerate(self.labels):
            targets[row, list(labels)] = 1
        return targets


LabelledRow = tuple[Text, str, float]
"""Text, label as it was read, weight."""


def labelled_rows(examples: Iterable[Example], source: str, change: Change | None = None) -> list[LabelledRow]:
    """Return text, label and weight of each example.

    Args:
        examples: What was read.
        source: Where from, for messages.
        change: What is done to every text; one that becomes None is left out with its label.

    Raises:
        DataError: Something else than labelled texts or pairs, or nothing at all.
    """
    rows: list[LabelledRow] = []
    for number, example in enumerate(examples, start=1):
        if not isinstance(example, LabelledText | TextPair) or (
            isinstance(example, TextPair) and example.score is not None
        ):
            raise DataError(
                f"{source}: row {number} is no labelled text; expected text and label, or premise, hypothesis and "
                "label (name other columns with `columns`)"
            )
        changed = example if change is None else example.changed(change)
        if changed is not None:
            texts = changed.own_texts()
            text: Text = texts[0] if len(texts) == 1 else (texts[0], texts[1])
            rows.append((text, changed.label_text(), float(example.extra.get("weight", 1.0))))
    if not rows:
        raise DataError(f"{source} holds no labelled texts")
    return rows


def label_names(labels: Iterable[str], multi_label: bool) -> list[str]:
    """Return all labels in order: whole numbers by value, else by the alphabet."""
    labels = list(labels)
    if not multi_label and any(SEPARATOR in label for label in labels):
        log.warning("labels hold '%s'; with multi_label, a text would have several", SEPARATOR)
    distinct = {name for label in labels for name in _split_label(label, multi_label)}
    alike: dict[str, set[str]] = {}
    for name in distinct:
        alike.setdefault(name.casefold(), set()).add(name)
    for names in alike.values():
        if len(names) > 1:
            log.warning("labels that differ in case alone are several classes: %s", ", ".join(sorted(names)))
    if all(name.isdecimal() for name in distinct):
        return sorted(distinct, key=int)
    return sorted(distinct)


def number_labels(rows: Sequence[LabelledRow], names: Sequence[str], multi_label: bool, where: str) -> LabelledTexts:
    """Return rows with the numbers of their labels.

    Raises:
        DataError: A label that isn't among the names, or none where each text needs one.
    """
    number_of = {name: number for number, name in enumerate(names)}
    labels = []
    for text, label, _ in rows:
        row_names = _split_label(label, multi_label)
        unknown = next((name for name in row_names if name not in number_of), None)
        shown = text if isinstance(text, str) else text[0]
        if not label and not multi_label:
            raise DataError(f"{where}: {shown[:60]!r} has an empty list of labels, which goes only with multi_label")
        if unknown is not None:
            raise DataError(f"{where}: unknown label '{unknown}' of {shown[:60]!r}.{nearest(unknown, names)}")
        labels.append(tuple(sorted(number_of[name] for name in row_names)))
    return LabelledTexts([row[0] for row in rows], labels, [row[2] for row in rows], names)


def _split_label(label: str, multi_label: bool) -> list[str]:
    if not multi_label:
        return [label]
    return list(dict.fromkeys(name.strip() for name in label.split(SEPARATOR) if name.strip()))


def read_labelled(folder: DataFolder, split: str, names: Sequence[str] = ()) -> LabelledTexts:
    """Read one split of a folder of labelled texts, or pairs.

    Args:
        folder: With text and label in each row, or premise, hypothesis and label; else columns that tell as much.
        split: Which one.
        names: The labels that there are; without them, those of the split.

    Raises:
        DataError: With file and line of what is wrong.
    """
    file = folder.file(split)
    rows = folder.split_rows(split)
    if not rows:
        raise DataError(f"{file} is empty")
    columns = rows[0][1].keys() if isinstance(rows[0][1], dict) else set()
    if "label" in columns and ("text" in columns or {"premise", "hypothesis"} <= columns):
        labelled = [_labelled_row(row, where) for where, row in rows]
    else:
        labelled = labelled_rows(examples_of_rows(rows, str(file)), str(file))
    if len({isinstance(text, tuple) for text, _, _ in labelled}) > 1:
        raise DataError(f"{file} holds single texts and pairs; a task has one or the other")
    return number_labels(labelled, names or label_names([row[1] for row in labelled], False), False, str(file))


def _labelled_row(row: Any, where: str) -> LabelledRow:
    """Return a row whose columns have the usual names; other columns say nothing here."""
    if isinstance(row, dict) and "premise" in row:
        text: Text = (required_text(row, "premise", where), required_text(row, "hypothesis", where))
    else:
        text = required_text(row, "text", where)
    label = row.get("label")
    if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
        raise DataError(f"{where}: 'label' must be a text or a whole number, got {label!r}")
    return text, str(label), 1.0


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


SCORED = frozenset({"sentence1", "sentence2", "score"})


def is_scored_by_label(folder: DataFolder) -> bool:
    """Return whether a folder's pairs have numbers under ``label``, as GLUE keeps scores, and none under ``score``."""
    row = folder.first_row()
    if not {"sentence1", "sentence2", "label"} <= row.keys() or "score" in row:
        return False
    try:
        return not isinstance(row["label"], bool) and math.isfinite(float(row["label"]))
    except (TypeError, ValueError, OverflowError):
        return False


def read_scored(folder: DataFolder, split: str) -> ScoredPairs:
    """Read one split of a folder of scored pairs.

    Args:
        folder: With sentence1, sentence2 and score (or a number as label) in each row; 1 and -1 are read as 1 and 0.
        split: Which one.

    Raises:
        DataError: With file and line of what is wrong, or all scores are the same.
    """
    rows = [
        (required_text(value, "sentence1", where), required_text(value, "sentence2", where), _score(value, where))
        for where, value in folder.split_rows(split)
    ]
    if len({score for _, _, score in rows}) < 2:
        raise DataError(
            f"{folder.file(split)}: all scores are the same, or there are none; nothing can be correlated with them"
        )
    first, second, scores = (tuple(column) for column in zip(*rows, strict=True))
    if set(scores) == {-1.0, 1.0}:  # another way to write no and yes
        scores = tuple(max(score, 0.0) for score in scores)
    return ScoredPairs(first, second, scores)


def _score(value: Any, where: str) -> float:
    score = value.get("score", value.get("label")) if isinstance(value, dict) else None
    try:
        # a table's cells are texts
        number = math.nan if isinstance(score, bool) or score is None else float(score)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: 'score' must be a number, got {score!r}")
    return number


CANDIDATE_COLUMNS = frozenset({"query", "positive", "negative"})


@dataclass(frozen=True, slots=True)
class Candidates:
    """A query and what is to be ordered for it."""

    query: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def ids(self) -> list[str]:
        """Return ``p1``, ``p2``, ... for the relevant ones, ``n1``, ... for the others."""
        return [
            f"{letter}{number + 1}"
            for letter, texts in (("p", self.positive), ("n", self.negative))
            for number in range(len(texts))
        ]

    def by_id(self, change: Callable[[str], str] = str) -> dict[str, str]:
        """Return the candidates by id."""
        return dict(zip(self.ids(), map(change, (*self.positive, *self.negative)), strict=True))


def read_candidates(folder: DataFolder, split: str) -> list[Candidates]:
    """Read one split.

    Args:
        folder: With query, positive and negative in each row.
        split: Which one.

    Raises:
        DataError: With file and line of what is wrong.
    """
    candidates = [
        Candidates(
            required_text(value, "query", where), *(_texts(value, key, where) for key in ("positive", "negative"))
        )
        for where, value in folder.split_rows(split)
    ]
    if not candidates:
        raise DataError(f"{folder.file(split)} is empty")
    return candidates


def _texts(value: dict[str, Any], key: str, where: Any) -> tuple[str, ...]:
    given = value.get(key)
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{where}: '{key}' must hold one text or more, none empty, got {str(given)[:80]!r}")
    return tuple(texts)
