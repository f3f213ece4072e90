"""From labelled texts and pairs to training records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bge_cocktail.records.examples import LabelledText, TextPair
from bge_cocktail.records.record import Record, normalise

POSITIVE_LABELS = ("entailment",)
NEGATIVE_LABELS = ("contradiction",)
JOINED = "joined into the record of the same text"
"""Counted like what is dropped, so that what came in is what went and what came out; nothing of it is lost."""


def records_from_labels(
    examples: Sequence[LabelledText], *, negatives: int, seed: int, dropped: Counter[str]
) -> list[Record]:
    """A record for each text: a text of the same label as its positive, texts of other labels as negatives.

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
    """A record for each first text: its positives and negatives by label (inference) or by score.

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
        dropped["neither a positive nor a negative, by label or score"] += roles.count("")
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
    """The score of each, if each has one."""
    scores = [pair.score for pair in pairs]
    return tuple(score for score in scores if score is not None) if None not in scores else ()


def _about(record: Record, examples: Sequence[LabelledText | TextPair], more: dict[str, Any]) -> Record:
    """The record with what its positives' rows said besides: the mean weight, the first one's id and columns."""
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
    """A text that isn't among those, or None; a few draws find one, unless nearly all are excluded."""
    for _ in range(8):
        text = texts[int(generator.integers(len(texts)))]
        if normalise(text) not in without:
            return text
    left = [text for text in texts if normalise(text) not in without]
    return left[int(generator.integers(len(left)))] if left else None
