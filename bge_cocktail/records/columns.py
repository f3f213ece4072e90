"""Which column of a data set is what: said, known by the data set's name, or told from the columns' names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bge_cocktail.errors import DataError, UsageError, nearest
from bge_cocktail.records.examples import Example, LabelledText, RecordExample, TextPair
from bge_cocktail.records.record import FIELDS, parse_record

ROLES = ("query", "pos", "neg", "rating", "text", "first", "second", "label", "score", "weight", "task", "id", "prompt")
# the names that data sets use, by role, the usual one first
_NAMES = {
    "query": ("query", "anchor", "question", "search_query"),
    "pos": ("pos", "positive", "positives", "document", "answer", "passage", "context", "response"),
    "neg": ("neg", "negative", "negatives"),
    "text": ("text", "sentence", "review", "content"),
    "first": ("sentence1", "premise", "text1", "question1", "sentence_A"),
    "second": ("sentence2", "hypothesis", "text2", "question2", "sentence_B"),
    "label": ("label", "gold_label", "label_text", "category", "intent", "class"),
    "score": ("score", "similarity", "similarity_score"),
    "rating": ("rating", "relevance", "grade"),
    "weight": ("weight",),
    "task": ("task",),
    "id": ("id",),
    "prompt": ("prompt",),
}
_NUMBERED = re.compile(r"(?:neg|negative)_?\d+")
_FORMS = (("query", "pos"), ("first", "second", "score"), ("first", "second", "label"), ("text", "label"))


@dataclass(frozen=True)
class Columns:
    """How rows become examples.

    Attributes:
        roles: For each role, the columns that play it; only ``pos`` and ``neg`` have several.
        labels: Names of labels that the data give as numbers, or other names for them.
        scale: What similarity scores and ratings are divided by.
    """

    roles: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, str] = field(default_factory=dict)
    scale: float = 1.0

    def example(self, row: Any, where: str) -> Example:
        """The example of a row.

        Raises:
            DataError: A column is missing, empty or of the wrong kind.
        """
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object with columns, got {type(row).__name__}")
        known = {column for columns in self.roles.values() for column in columns}
        extra = {name: value for name, value in row.items() if name not in known}
        if "text" in self.roles:
            return LabelledText(self._text(row, "text", where), self._label(row, where), extra)
        if "rating" in self.roles:
            first, second = self._text(row, "query", where), self._text(row, "pos", where)
            weight = {"weight": self._number(row, "weight", where)} if "weight" in self.roles else {}
            score = self._number(row, "rating", where) / self.scale
            return TextPair(first, second, score=score, extra={**extra, **weight})
        if "first" in self.roles:
            first, second = self._text(row, "first", where), self._text(row, "second", where)
            if "score" in self.roles:
                return TextPair(first, second, score=self._number(row, "score", where) / self.scale, extra=extra)
            return TextPair(first, second, self._label(row, where), extra=extra)
        return RecordExample(parse_record({**extra, **self._record(row, where)}, where))

    def _record(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for role in ("query", "pos", "neg"):
            for column in self.roles.get(role, ()):
                content = self._cell(row, column, where) if role != "neg" else row.get(column)
                if role == "query":
                    value[role] = content
                else:  # a single text is a list of one; an empty cell is none
                    texts = [content] if isinstance(content, str) else content
                    texts = [text for text in texts or [] if not (isinstance(text, str) and not text.strip())]
                    value[role] = [*value.get(role, []), *texts]
        for role in ("weight", "task", "id", "prompt"):
            for column in self.roles.get(role, ()):
                if row.get(column) not in (None, ""):
                    content = row[column]
                    value[role] = self._number(row, role, where) if role == "weight" else str(content)
        return value

    def _cell(self, row: Mapping[str, Any], column: str, where: str) -> Any:
        if column not in row:
            raise DataError(f"{where}: '{column}' is missing; found {', '.join(row) or 'nothing'}")
        return row[column]

    def _text(self, row: Mapping[str, Any], role: str, where: str) -> str:
        column = self.roles[role][0]
        text = self._cell(row, column, where)
        if not isinstance(text, str):
            raise DataError(f"{where}: '{column}' must be a text, got {text!r:.60}")
        if not text.strip():
            raise DataError(f"{where}: '{column}' is empty")
        return text

    def _label(self, row: Mapping[str, Any], where: str) -> str:
        column = self.roles["label"][0]
        label = self._cell(row, column, where)
        if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
            raise DataError(f"{where}: '{column}' must be a text or a whole number, got {label!r:.60}")
        if self.labels and str(label) not in self.labels and str(label) not in self.labels.values():
            hint = nearest(str(label), {*self.labels, *self.labels.values()})
            raise DataError(f"{where}: unknown label '{label}' in '{column}'.{hint}")
        return self.labels.get(str(label), str(label))

    def _number(self, row: Mapping[str, Any], role: str, where: str) -> float:
        column = self.roles[role][0]
        content = self._cell(row, column, where)
        try:
            number = math.nan if isinstance(content, bool) else float(content)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"{where}: '{column}' must be a number, got {content!r:.60}")
        return number


def parse_columns(text: str) -> dict[str, tuple[str, ...]]:
    """``query=question,pos=answer,neg=wrong1+wrong2`` by role.

    Raises:
        UsageError: A role is unknown, or the form is another.
    """
    roles: dict[str, tuple[str, ...]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        role, sign, columns = part.partition("=")
        if not sign or not columns:
            raise UsageError(f"columns are said as role=column, with commas between (query=question), got '{part}'")
        if role not in ROLES:
            raise UsageError(f"unknown role '{role}' in columns.{nearest(role, ROLES)}")
        roles[role] = tuple(columns.split("+"))
        if len(roles[role]) > 1 and role not in ("pos", "neg"):
            raise UsageError(f"'{role}' is one column, got {columns}")
    return roles


def guess_roles(names: Sequence[str], where: str) -> dict[str, tuple[str, ...]]:
    """The roles of columns, told from their names.

    Raises:
        DataError: No known form is among them.
    """
    roles: dict[str, tuple[str, ...]] = {}
    for role, known in _NAMES.items():
        found = next((name for name in known if name in names), None)
        if found is not None:
            roles[role] = (found,)
    if numbered := tuple(name for name in names if _NUMBERED.fullmatch(name)):
        roles["neg"] = (*roles.get("neg", ()), *numbered)
    return complete(roles, names, where)


def complete(roles: dict[str, tuple[str, ...]], names: Sequence[str], where: str) -> dict[str, tuple[str, ...]]:
    """Only the roles that go together in one form.

    Raises:
        DataError: The roles make no form.
    """
    for form in _FORMS:
        if all(role in roles for role in form):
            allowed = set(form)
            if form == ("query", "pos"):
                allowed |= {"neg", "rating", "weight", "task", "id", "prompt"}
                # a record's own file: every field has its own name
                if roles["query"] == ("query",) and roles["pos"] == ("pos",):
                    roles = {role: columns for role, columns in roles.items() if columns[0] in FIELDS or role in form}
            return {role: columns for role, columns in roles.items() if role in allowed}
    raise DataError(
        f"{where}: can't tell what the columns are: found {', '.join(names) or 'none'}; say which is what: "
        "--columns query=...,pos=... (or text=...,label=... or first=...,second=...,score=... or "
        "first=...,second=...,label=...)"
    )
