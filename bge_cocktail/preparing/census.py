"""What data consist of: counts, lengths, labels."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from bge_cocktail.records.examples import Example, LabelledText, RecordExample

LABELS_SHOWN = 200


class Census:
    """Counts the examples of one split as they go by.

    Args:
        count_tokens: Tokens of a text; without it, only characters are counted.
        limit: The longest text that the model reads, in tokens.
    """

    def __init__(self, count_tokens: Callable[[str], int] | None = None, limit: int | None = None) -> None:
        self._count_tokens, self._limit = count_tokens, limit
        self._chars: dict[str, array[int]] = {}
        self._tokens: dict[str, array[int]] = {}
        self._labels: Counter[str] = Counter()
        self.examples = 0
        self._without_negatives = 0
        self._augmented = 0
        self._weights = 0.0

    def add(self, example: Example) -> None:
        """Count an example."""
        self.examples += 1
        extra = example.extra
        self._augmented += "augmented" in extra
        if label := example.label_text() or (extra and str(extra.get("label") or "")):
            self._labels[label] += 1
        if isinstance(example, RecordExample):
            record = example.record
            self._without_negatives += not record.neg
            self._weights += record.weight
            self._measure("query", record.query)
            for text in record.pos:
                self._measure("positive", text)
            for text in record.neg:
                self._measure("negative", text)
        else:
            for text in example.own_texts():
                self._measure("text" if isinstance(example, LabelledText) else "sentence", text)

    def summary(self) -> dict[str, Any]:
        """All that was counted, for JSON."""
        found: dict[str, Any] = {"examples": self.examples}
        for role, lengths in self._chars.items():
            found[f"{role}_chars"] = _spread(lengths)
        for role, lengths in self._tokens.items():
            found[f"{role}_tokens"] = _spread(lengths)
            if self._limit:
                cut = float(np.mean(np.frombuffer(lengths, np.uint32) > self._limit))
                found[f"{role}_cut"] = {"limit": self._limit, "share": round(cut, 4)}
        if "query" in self._chars:
            found["without_negatives"] = self._without_negatives
            found["mean_weight"] = round(self._weights / max(1, self.examples), 4)
        if self._augmented:
            found["augmented"] = self._augmented
        if self._labels:
            found["labels"] = dict(self._labels.most_common(LABELS_SHOWN))
            found["distinct_labels"] = len(self._labels)
        return found

    def _measure(self, role: str, text: str) -> None:
        self._chars.setdefault(role, array("I")).append(len(text))
        if self._count_tokens is not None:
            self._tokens.setdefault(role, array("I")).append(self._count_tokens(text))


def _spread(lengths: array[int]) -> dict[str, float]:
    values = np.frombuffer(lengths, np.uint32)
    middle, high = np.percentile(values, [50, 95])
    return {
        "texts": len(values),
        "mean": round(float(values.mean()), 1),
        "median": float(middle),
        "p95": float(high),
        "most": int(values.max()),
    }
