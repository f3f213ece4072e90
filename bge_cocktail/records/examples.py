"""What data can be before it is training records: labelled texts, pairs of texts, records; one shape for all three."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from bge_cocktail.records.record import FIELDS, Record, normalise, parse_record

RESERVED = frozenset({*FIELDS, "text", "label", "premise", "hypothesis", "sentence1", "sentence2", "score"})
"""Keys that mean something here; a column of such a name that plays no role is kept as ``source_NAME``."""
Change = Callable[[str, str], str | None]
"""A text and its role in, the changed text out, or None if it has to go."""


class Example(Protocol):
    """Anything that data are made of: texts with roles, and something said about them."""

    @property
    def extra(self) -> Mapping[str, Any]:
        """Keys of the source that mean nothing here, kept as they were."""
        ...

    def own_texts(self) -> tuple[str, ...]:
        """The texts that make it what it is: a query and its positives, not its negatives."""
        ...

    def label_text(self) -> str:
        """What it is labelled with; empty without a label."""
        ...

    def changed(self, change: Change) -> Self | None:
        """The example with its texts changed; None if too little of it is left."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The example as a JSON object."""
        ...


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and its class.

    Attributes:
        text: The text.
        label: Its class.
        task: The data set that it belongs to; labels of two tasks are two labels.
        extra: Other keys of the source.
    """

    text: str
    label: str
    task: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def own_texts(self) -> tuple[str, ...]:
        """See `Example`."""
        return (self.text,)

    def label_text(self) -> str:
        """See `Example`."""
        return self.label

    def changed(self, change: Change) -> LabelledText | None:
        """See `Example`."""
        text = change(self.text, "text")
        return None if text is None else replace(self, text=text)

    def to_json(self) -> dict[str, Any]:
        """See `Example`."""
        return {**self.extra, "text": self.text, "label": self.label, **_task(self.task)}


@dataclass(frozen=True, slots=True)
class TextPair:
    """Two texts and what they are to each other: a label (inference) or a score (similarity).

    Attributes:
        first: The premise, or the first sentence.
        second: The hypothesis, or the second sentence.
        label: ``entailment``, ``contradiction``, ...; empty for a similarity.
        score: How alike they are, from 0 to 1; None with a label.
        task: The data set that it belongs to.
        extra: Other keys of the source.
    """

    first: str
    second: str
    label: str = ""
    score: float | None = None
    task: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def own_texts(self) -> tuple[str, ...]:
        """See `Example`."""
        return (self.first, self.second)

    def label_text(self) -> str:
        """See `Example`."""
        return self.label

    def changed(self, change: Change) -> TextPair | None:
        """See `Example`."""
        first, second = change(self.first, "text"), change(self.second, "text")
        return None if first is None or second is None else replace(self, first=first, second=second)

    def to_json(self) -> dict[str, Any]:
        """See `Example`."""
        own: dict[str, Any]
        if self.score is None:
            own = {"premise": self.first, "hypothesis": self.second, "label": self.label}
        else:
            own = {"sentence1": self.first, "sentence2": self.second, "score": self.score}
        return {**self.extra, **own, **_task(self.task)}


@dataclass(frozen=True, slots=True)
class RecordExample:
    """A training record as an example."""

    record: Record

    @property
    def extra(self) -> Mapping[str, Any]:
        """See `Example`."""
        return self.record.extra

    def own_texts(self) -> tuple[str, ...]:
        """See `Example`."""
        return (self.record.query, *self.record.pos)

    def label_text(self) -> str:
        """See `Example`."""
        return self.record.task or ""

    def changed(self, change: Change) -> RecordExample | None:
        """See `Example`; teacher scores stay with the texts that stay, and a negative that became a positive goes."""
        record = self.record
        query = change(record.query, "query")
        pos, pos_scores = _changed(record.pos, record.pos_scores, change)
        if query is None or not pos:
            return None
        positives = {normalise(text) for text in pos}
        neg, neg_scores = _changed(record.neg, record.neg_scores, change, positives)
        new = replace(record, query=query, pos=pos, pos_scores=pos_scores, neg=neg, neg_scores=neg_scores)
        return RecordExample(new)

    def to_json(self) -> dict[str, Any]:
        """See `Example`."""
        return self.record.to_json()


def _changed(
    texts: tuple[str, ...], scores: tuple[float, ...], change: Change, without: set[str] | None = None
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    kept = [(change(text, "document"), score) for text, score in zip(texts, scores or (math.nan,) * len(texts))]  # noqa: B905
    found: dict[str, float] = {}
    for text, score in kept:
        if text is not None and not (without and normalise(text) in without):
            found.setdefault(text, score)
    return tuple(found), tuple(found.values()) if scores else ()


def example_from_json(value: dict[str, Any], where: str) -> Example:
    """What `to_json` of an example gave, as an example again."""
    if "query" in value:
        return RecordExample(parse_record(value, where))
    rest = dict(value)
    task = rest.pop("task", "")
    if "text" in rest:
        return LabelledText(rest.pop("text"), rest.pop("label"), task, rest)
    if "premise" in rest:
        return TextPair(rest.pop("premise"), rest.pop("hypothesis"), rest.pop("label"), task=task, extra=rest)
    return TextPair(rest.pop("sentence1"), rest.pop("sentence2"), score=rest.pop("score"), task=task, extra=rest)


def with_task(example: Example, task: str) -> Example:
    """The example with the task that it belongs to, unless it has one."""
    if isinstance(example, RecordExample):
        record = example.record
        return RecordExample(replace(record, task=task)) if record.task is None else example
    if isinstance(example, LabelledText | TextPair) and not example.task:
        return replace(example, task=task)
    return example


def _task(task: str) -> dict[str, str]:
    return {"task": task} if task else {}
