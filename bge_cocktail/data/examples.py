"""What data can be before it is training records, and records made of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np

from bge_cocktail.data.record import FIELDS, Record, normalise, parse_record

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
        """Return the texts that make it what it is: a query and its positives, not its negatives."""
        ...

    def label_text(self) -> str:
        """Return what it is labelled with; empty without a label."""
        ...

    def changed(self, change: Change) -> Self | None:
        """Return the example with its texts changed; None if too little of it is left."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the example as a JSON object."""
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
    kept_scores: dict[str, float] = {}
    for text, score in kept:
        if text is not None and not (without and normalise(text) in without):
            kept_scores.setdefault(text, score)
    return tuple(kept_scores), tuple(kept_scores.values()) if scores else ()


def example_from_json(value: dict[str, Any], where: str) -> Example:
    """Return what `to_json` of an example gave, as an example again."""
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
    """Return the example with the task that it belongs to, unless it has one."""
    if isinstance(example, RecordExample):
        record = example.record
        return RecordExample(replace(record, task=task)) if record.task is None else example
    if isinstance(example, LabelledText | TextPair) and not example.task:
        return replace(example, task=task)
    return example


def _task(task: str) -> dict[str, str]:
    return {"task": task} if task else {}


POSITIVE_LABELS = ("entailment",)
NEGATIVE_LABELS = ("contradiction",)
NEITHER = "neither a positive nor a negative, by label or score"
JOINED = "joined into the record of the same text"
"""Counted like what is dropped, so that what came in is what went and what came out; nothing of it is lost."""


def records_from_labels(
    examples: Sequence[LabelledText], *, negatives: int, seed: int, dropped: Counter[str]
) -> list[Record]:
    """Return a record for each text: a text of the same label as its positive, texts of other labels as negatives.

    The batch's other documents say nothing about a text's class (they may share it), so the records are marked
    not to use them (FlagEmbedding's ``no_in_batch_neg``).

    Args:
        examples: Labelled texts.
        negatives: Texts of other labels for each record, drawn evenly over those labels.
        seed: Seeds the draws.
        dropped: Counts texts that are alone with their label.
    """
    by_label: dict[tuple[str, str], list[str]] = {}
    for example in examples:
        by_label.setdefault((example.task, example.label), []).append(example.text)
    labels = sorted(by_label)
    generator = np.random.default_rng(seed)
    records = []
    for example in examples:
        own = (example.task, example.label)
        same, key = by_label[own], normalise(example.text)
        positive = _draw_other(same, {key}, generator)
        if positive is None:
            dropped["the only text of its label, so without a positive"] += 1
            continue
        taken = {key, normalise(positive)}
        others = [label for label in labels if label != own and label[0] == example.task]
        neg: list[str] = []
        while others and len(neg) < negatives:
            used_up = []
            for place in generator.permutation(len(others)).tolist():
                if len(neg) == negatives:
                    break
                text = _draw_other(by_label[others[place]], taken, generator)
                if text is None:
                    used_up.append(others[place])
                else:
                    neg.append(text)
                    taken.add(normalise(text))
            others = [label for label in others if label not in used_up]
        record = Record(example.text, (positive,), tuple(neg), in_batch_negatives=False)
        records.append(_about(record, [example], {"label": example.label}))
    return records


def records_from_pairs(
    examples: Iterable[TextPair],
    *,
    positive_from: float,
    negative_below: float,
    dropped: Counter[str],
) -> list[Record]:
    """Return a record for each first text: its positives and negatives by label (inference) or by score.

    Args:
        examples: Pairs with labels (entailment is a positive, contradiction a negative) or with scores.
        positive_from: Scores of at least this are positives; the scores go into ``pos_scores``.
        negative_below: Scores below this are negatives; what lies between is neither.
        dropped: Counts pairs that are neither and first texts without a positive.
    """
    groups: dict[tuple[str, str], list[TextPair]] = {}
    for example in examples:
        groups.setdefault((example.task, normalise(example.first)), []).append(example)
    records = []
    for pairs in groups.values():
        roles = [_role(pair, positive_from, negative_below) for pair in pairs]
        dropped[NEITHER] += roles.count("")
        positives = {normalise(pair.second): pair for pair, role in zip(pairs, roles, strict=True) if role == "pos"}
        negatives = {normalise(pair.second): pair for pair, role in zip(pairs, roles, strict=True) if role == "neg"}
        if both := positives.keys() & negatives.keys():
            dropped["a negative that is also a positive of the same text"] += len(both)
            roles = [
                "" if one == "neg" and normalise(pair.second) in both else one
                for pair, one in zip(pairs, roles, strict=True)
            ]
            negatives = {key: pair for key, pair in negatives.items() if key not in both}
        if not positives:
            dropped["pairs of a text that has no positive"] += len(pairs) - roles.count("")
            continue
        dropped[JOINED] += roles.count("pos") + roles.count("neg") - 1
        record = Record(
            pairs[0].first,
            tuple(pair.second for pair in positives.values()),
            tuple(pair.second for pair in negatives.values()),
            pos_scores=_scores(positives.values()),
            neg_scores=_scores(negatives.values()),
        )
        records.append(_about(record, list(positives.values()), {}))
    return records


def _scores(pairs: Iterable[TextPair]) -> tuple[float, ...]:
    """Return the score of each, if each has one."""
    scores = [pair.score for pair in pairs]
    return tuple(score for score in scores if score is not None) if None not in scores else ()


def _about(record: Record, examples: Sequence[LabelledText | TextPair], more: dict[str, Any]) -> Record:
    """Return the record with what its positives' rows said besides: the mean weight, the first one's id and columns."""
    extra = {**examples[0].extra, **more}
    weights = [float(example.extra.get("weight", 1.0)) for example in examples]
    return replace(
        record,
        weight=float(np.mean(weights)),
        task=examples[0].task or None,
        id=extra.pop("id", None),
        prompt=extra.pop("prompt", None),
        extra={name: value for name, value in extra.items() if name != "weight"},
    )


def _role(pair: TextPair, positive_from: float, negative_below: float) -> str:
    if pair.score is None:
        return "pos" if pair.label in POSITIVE_LABELS else "neg" if pair.label in NEGATIVE_LABELS else ""
    return "pos" if pair.score >= positive_from else "neg" if pair.score < negative_below else ""


def _draw_other(texts: Sequence[str], without: set[str], generator: np.random.Generator) -> str | None:
    """Return a text that isn't among those, or None; a few draws find one, unless nearly all are excluded."""
    for _ in range(8):
        text = texts[int(generator.integers(len(texts)))]
        if normalise(text) not in without:
            return text
    left = [text for text in texts if normalise(text) not in without]
    return left[int(generator.integers(len(left)))] if left else None
