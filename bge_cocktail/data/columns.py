"""Which column of a data set is what: said, known by the data set's name, or told from the columns' names."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bge_cocktail.core.errors import DataError, UsageError, nearest
from bge_cocktail.data.examples import RESERVED, Example, LabelledText, RecordExample, TextPair
from bge_cocktail.data.record import (
    BLANK,
    GRADES,
    NEGATIVES,
    Text,
    is_blank,
    is_broken,
    parse_record,
    says_no,
    text_list,
)


@dataclass(frozen=True)
class Preset:
    """A data set by its short name.

    Attributes:
        name: On the hub.
        config: Which part of it.
        columns: As `--columns` takes them.
        labels: Names of the numbers it gives.
        scale: What its scores are divided by.
        splits: Its own names for train, dev and test, where they differ.
        unlabelled: Splits whose labels are kept back (all -1), so that nothing can be learned or judged by them.
    """

    name: str
    config: str | None
    columns: str
    labels: dict[str, str] = field(default_factory=dict)
    scale: float = 1.0
    splits: dict[str, str] = field(default_factory=dict)
    unlabelled: tuple[str, ...] = ()


def _numbered(*names: str) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


_TRIPLET = "query=anchor,pos=positive,neg=negative"
_VALIDATION: dict[str, Any] = {"splits": {"dev": "validation"}}
# GLUE keeps the labels of its tests back
_GLUE: dict[str, Any] = {**_VALIDATION, "unlabelled": ("test",)}


PRESETS = {
    "sst2": Preset("stanfordnlp/sst2", None, "text=sentence,label=label", _numbered("negative", "positive"), **_GLUE),
    "mnli": Preset(
        "nyu-mll/multi_nli",
        None,
        "first=premise,second=hypothesis,label=label",
        _numbered("entailment", "neutral", "contradiction"),
        splits={"dev": "validation_matched", "test": "validation_mismatched"},
    ),
    "imdb": Preset("stanfordnlp/imdb", None, "text=text,label=label", _numbered("negative", "positive")),
    "stsb": Preset("nyu-mll/glue", "stsb", "first=sentence1,second=sentence2,score=label", scale=5.0, **_GLUE),
    "qqp": Preset("nyu-mll/glue", "qqp", "query=question1,pos=question2,rating=label", **_GLUE),
    "quora": Preset("sentence-transformers/quora-duplicates", "triplet", _TRIPLET),
    "msmarco": Preset("sentence-transformers/msmarco-bm25", "triplet", "query=query,pos=positive,neg=negative"),
    "nli": Preset("sentence-transformers/all-nli", "triplet", _TRIPLET, **_VALIDATION),
    "banking77": Preset("mteb/banking77", None, "text=text,label=label_text"),
    "ag_news": Preset(
        "fancyzhx/ag_news", None, "text=text,label=label", _numbered("World", "Sports", "Business", "Sci/Tech")
    ),
    "dureader": Preset("sentence-transformers/dureader", "triplet", _TRIPLET),
    "t2ranking": Preset("sentence-transformers/t2ranking", "triplet", _TRIPLET),
}
ROLES = ("query", "pos", "neg", "rating", "text", "first", "second", "label", "score", "weight", "task", "id", "prompt")
ABOUT = ("weight", "task", "id", "prompt")
# the names that data sets use, by role, the usual one first
_NAMES = {
    "query": ("query", "anchor", "question", "search_query"),
    "pos": (
        *("pos", "positive", "positives", "document", "answer", "passage", "context", "response"),
        *("positive_passages", "positive_documents", "positive_ctxs", "chosen"),
    ),
    "neg": NEGATIVES,
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


# between the labels of a text that may have several
SEPARATOR = "|"


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

    def example(self, row: Any, where: str, note: Callable[[str], None] = lambda _: None) -> Example:
        """Return the example of a row.

        Args:
            row: Its columns.
            where: ``file:line``.
            note: Told of what is left out.

        Raises:
            DataError: A column is missing, empty or of the wrong kind.
        """
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object with columns, got {type(row).__name__}")
        known = {column for columns in self.roles.values() for column in columns}
        rest = {name: value for name, value in row.items() if name not in known}
        extra = {f"source_{name}" if name in RESERVED else name: value for name, value in rest.items()}
        if self.is_record:
            return RecordExample(parse_record({**extra, **self._record(row, where, note)}, where))
        about = self._about(row, where)
        task = about.pop("task", "")
        extra |= about
        if "text" in self.roles:
            return LabelledText(self.text(row, "text", where), self._label(row, where), task, extra)
        one, other = ("query", "pos") if "rating" in self.roles else ("first", "second")
        first, second = self.text(row, one, where), self.text(row, other, where)
        for role in ("rating", "score"):
            if role in self.roles:
                return TextPair(first, second, score=self._score(row, role, where), task=task, extra=extra)
        return TextPair(first, second, self._label(row, where), task=task, extra=extra)

    @property
    def is_record(self) -> bool:
        """Whether a row is a query with its positives and negatives."""
        return "query" in self.roles and "rating" not in self.roles

    def _record(self, row: Mapping[str, Any], where: str, note: Callable[[str], None]) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for role in ("query", "pos", "neg"):
            for column in self.roles.get(role, ()):
                # a row may lack negatives, and one of several columns
                content = row.get(column) if role == "neg" else self._cell(row, column, where)
                if role == "query":
                    value[role] = content
                else:  # an empty cell is none
                    content = _list_of_cell(content)
                    texts = [] if is_blank(content) else text_list(content, where, column)
                    kept = [text for text in texts if not is_blank(text)]
                    for _ in range(len(texts) - len(kept)):
                        note(BLANK if role == "neg" else f"{BLANK}, as a positive")
                    value[role] = [*value.get(role, []), *kept]
        return value | self._about(row, where)

    def _about(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Weight, task, id and prompt, those that the row has."""
        extra: dict[str, Any] = {}
        for role in ABOUT:
            for column in self.roles.get(role, ()):
                if row.get(column) not in (None, ""):
                    extra[role] = self._weight(row, where) if role == "weight" else str(row[column])
        return extra

    def _score(self, row: Mapping[str, Any], role: str, where: str) -> float:
        score = self._number(row, role, where) / self.scale
        if not 0 <= score <= 1:
            column = self.roles[role][0]
            raise DataError(
                f"{where}: '{column}' divided by {self.scale:g} is {score:g}, but scores lie between 0 and 1; "
                "say what they are divided by: `scale=5`"
            )
        return score

    def _cell(self, row: Mapping[str, Any], column: str, where: str) -> Any:
        if column not in row:
            raise DataError(f"{where}: '{column}' is missing; found {', '.join(row) or 'nothing'}")
        return row[column]

    def text(self, row: Mapping[str, Any], role: str, where: str) -> str:
        """Return the text of a role.

        Raises:
            DataError: It is missing, empty, no text or broken.
        """
        column = self.roles[role][0]
        text = self._cell(row, column, where)
        if not isinstance(text, str):
            raise DataError(f"{where}: '{column}' must be a text, got {text!r:.60}")
        if not text.strip():
            raise DataError(f"{where}: '{column}' is empty")
        if is_broken(text):
            raise DataError(f"{where}: '{column}' holds half of a character (a lone surrogate)")
        return text

    def _label(self, row: Mapping[str, Any], where: str) -> str:
        column = self.roles["label"][0]
        label = self._cell(row, column, where)
        if isinstance(label, list):  # a text may have several
            if wrong := [part for part in label if not isinstance(part, str) or not part.strip() or SEPARATOR in part]:
                raise DataError(f"{where}: labels of '{column}' are texts without '{SEPARATOR}', got {wrong[0]!r:.60}")
            return SEPARATOR.join(self.labels.get(part.strip(), part.strip()) for part in label)
        if isinstance(label, str):
            label = label.strip()  # a space after it makes no other class
        if isinstance(label, bool):
            label = str(label).lower()
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        if not isinstance(label, str | int) or label == "":
            raise DataError(f"{where}: '{column}' must be a text or a whole number, got {label!r:.60}")
        if is_broken(str(label)):
            raise DataError(f"{where}: '{column}' holds half of a character (a lone surrogate)")
        # names may stand beside the numbers that they name, but not beside other names
        named = str(label) in self.labels.values() and all(key.isdigit() for key in self.labels)
        if self.labels and str(label) not in self.labels and not named:
            hint = nearest(str(label), {*self.labels, *self.labels.values()})
            raise DataError(f"{where}: unknown label '{label}' in '{column}'.{hint}")
        return self.labels.get(str(label), str(label))

    def _weight(self, row: Mapping[str, Any], where: str) -> float:
        weight = self._number(row, "weight", where)
        if weight < 0:
            raise DataError(f"{where}: '{self.roles['weight'][0]}' must be 0 or more, got {weight:g}")
        return weight

    def _number(self, row: Mapping[str, Any], role: str, where: str) -> float:
        column = self.roles[role][0]
        content = self._cell(row, column, where)
        try:
            # true is 1 where it grades, and no weight
            number = math.nan if isinstance(content, bool) and role == "weight" else float(content)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"{where}: '{column}' must be a number, got {content!r:.60}")
        return number


def _list_of_cell(cell: Any) -> Any:
    """Return the texts of a list that was written into the cell of a table, as JSON or as Python shows it."""
    bare = cell.strip() if isinstance(cell, str) else ""
    if bare[:1] + bare[-1:] not in ("[]", "()"):
        return cell
    for read in (json.loads, _literal):
        try:
            texts = read(bare)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        # what is missing in a list is blank, and counted as such
        if isinstance(texts, list | tuple) and all(isinstance(text, str) or text is None for text in texts):
            return [text or "" for text in texts]
    return cell


# "nan" as pandas writes what is missing; quotes side by side, as numpy writes lists
_NAN = re.compile(r"(?<=[\[(,\s])nan(?=[\]),\s])")
_WORDS = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


def _literal(text: str) -> Any:
    """Return a list as Python, pandas or numpy shows it; no code is run."""
    value = ast.literal_eval(_NAN.sub("None", text))
    words = _WORDS.findall(text)
    if isinstance(value, list) and all(isinstance(one, str) for one in value) and len(words) > len(value):
        return [ast.literal_eval(word) for word in words]  # Python would join texts that no comma parts
    return value


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
    """Return the roles of columns, told from their names.

    Raises:
        DataError: No known form is among them.
    """
    roles: dict[str, tuple[str, ...]] = {}
    for role, known in _NAMES.items():
        columns = tuple(name for name in known if name in names)
        if columns:
            roles[role] = columns if role == "neg" else columns[:1]
    if numbered := tuple(name for name in names if _NUMBERED.fullmatch(name)):
        roles["neg"] = (*roles.get("neg", ()), *numbered)
    return keep_one_form(roles, names, where)


def text_of_row(row: Mapping[str, Any], pairs: bool | None, roles: Mapping[str, tuple[str, ...]], where: str) -> Text:
    """Return the text or pair of a row that need not have a label.

    Args:
        row: Its columns.
        pairs: Whether a pair is looked for; None: a pair where the row has one.
        roles: Which column is what; told from the names without it.
        where: It stands.

    Raises:
        DataError: It has none, or an empty or broken one.
    """
    known = roles or {role: (name,) for role, names in _NAMES.items() for name in names[::-1] if name in row}
    if not roles and "first" not in known and {"text", "text_pair"} <= row.keys():  # as transformers' pipeline has them
        known = {**known, "first": ("text",), "second": ("text_pair",)}
    forms = [("first", "second"), ("text",)] if pairs is None else [("first", "second") if pairs else ("text",)]
    form = next((form for form in forms if all(role in known for role in form)), None)
    if form is None:
        wanted = " or ".join(", ".join(f"{role}=..." for role in form) for form in forms)
        seen = ", ".join(row) or "nothing"
        raise DataError(f"{where}: can't tell which column is the text; found {seen}; say it: `columns={wanted}`")
    columns = Columns(known)
    texts = [columns.text(row, role, where) for role in form]
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


def refuse_unread_grades(roles: Mapping[str, tuple[str, ...]], rows: Iterable[Mapping[str, Any]], where: str) -> None:
    """Refuse queries with answers beside numbers that may say which of the answers are wrong.

    Args:
        roles: As they were told from the names.
        rows: Some rows.
        where: For the message.

    Raises:
        DataError: With the columns that would read them.
    """
    if "query" not in roles or "rating" in roles:
        return
    rows = list(rows)
    usual = (*_NAMES["label"], *_NAMES["score"])
    others = [name for name in dict.fromkeys(name for row in rows for name in row) if GRADES.fullmatch(str(name))]
    for name in dict.fromkeys((*usual, *others)):
        values = [row[name] for row in rows if row.get(name) is not None and str(row[name]).strip()]
        # beside negatives, or under another name, only what plainly says no is asked about
        doubtful = name in usual and "neg" not in roles and values and all(map(_is_number, values))
        if doubtful or any(map(says_no, values)):
            plain = f"query={roles['query'][0]},pos={roles['pos'][0]}"
            raise DataError(
                f"{where}: the values of '{name}' may say which answers are wrong; say it: "
                f"`columns={plain},rating={name}`, or without them: `columns={plain}`"
            )


def _is_number(value: object) -> bool:
    try:
        return not isinstance(value, list) and math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False


def keep_one_form(roles: dict[str, tuple[str, ...]], names: Sequence[str], where: str) -> dict[str, tuple[str, ...]]:
    """Return the roles of the first form whose roles are all there, with what may go beside it.

    Args:
        roles: For each role, the columns that play it.
        names: All columns of the data, for the message.
        where: File or data set, for the message.

    Raises:
        DataError: The roles make no form.
    """
    for form in _FORMS:
        if all(role in roles for role in form):
            allowed = {*form, *ABOUT, *(("neg", "rating") if form == ("query", "pos") else ())}
            return {role: columns for role, columns in roles.items() if role in allowed}
    if len(given := [role for role in ("query", "pos") if role in roles]) == 1:
        missing = "pos" if given == ["query"] else "query"
        said = f"{given[0]}={'+'.join(roles[given[0]])}"
        raise DataError(
            f"{where}: with {said}, {missing} is missing; found {', '.join(names)}: `columns={said},{missing}=...`"
        )
    separator = next((mark for mark in (";", "|", "\t") if len(names) == 1 and mark in names[0]), None)
    if separator:
        raise DataError(
            f"{where}: one column, '{names[0]}'; is it separated by {separator!r}? Write commas, or tabs as .tsv"
        )
    raise DataError(
        f"{where}: can't tell what the columns are: found {', '.join(names) or 'none'}; say which is what: "
        "`columns=query=...,pos=...` (or text=...,label=... or first=...,second=...,score=... or "
        "first=...,second=...,label=...)"
    )
