"""Varied copies of labelled texts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from bge_cocktail.classifying.data import ClassData, LabelledTexts, text_key
from bge_cocktail.options import Classifying
from bge_cocktail.preparing.augmenting import with_copies
from bge_cocktail.records import normalise
from bge_cocktail.records.labelled import Text

log = logging.getLogger(__name__)
_Row = tuple[Text, tuple[int, ...], float]


def with_varied(data: ClassData, options: Classifying) -> ClassData:
    """The data with a varied copy, of the same labels, after some texts of train; of pairs, the first text is varied.

    Args:
        data: Train is varied; no copy repeats a text of dev or test.
        options: Which variations, for which share, of how many words; the seed.
    """
    if not options.augment:
        return data
    held = {text_key(text) for part in (data.dev, data.test) if part for text in part.texts} | data.held
    counted: Counter[str] = Counter()
    rows = zip(data.train.texts, data.train.labels, data.train.weights, strict=True)
    varied = with_copies(rows, options, options.seed, _copy, lambda row: text_key(row[0]) in held, counted)
    train = LabelledTexts(*(list(column) for column in zip(*varied, strict=True)))
    log.info("%s", ", ".join(f"{count} {what}" for what, count in sorted(counted.items())) or "no copies")
    return replace(data, train=train)


def _copy(row: _Row, _name: str, varied: Callable[[str], str]) -> _Row | None:
    text, labels, weight = row
    first = text if isinstance(text, str) else text[0]
    changed = varied(first)
    if normalise(changed) == normalise(first):
        return None
    return (changed if isinstance(text, str) else (changed, text[1])), labels, weight
