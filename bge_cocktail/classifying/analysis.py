"""What a classifier gets wrong: the surest mistakes, what it takes for what, at which lengths, and doubtful labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.classifying.data import LabelledTexts
from bge_cocktail.records.labelled import Text

SHOWN = 20
# words; the last bucket is open
LENGTHS = (8, 16, 32, 64, 128, 256)


def mistakes(
    data: LabelledTexts, found: NDArray[np.float64], guessed: NDArray[np.bool_], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """The mistakes that it is surest of.

    Args:
        data: Texts and labels.
        found: Probabilities, shape (texts, classes).
        guessed: What is predicted, shape (texts, classes).
        labels: Names of the classes.
    """
    truth = data.targets(len(labels)).astype(bool)
    wrong = np.flatnonzero((truth != guessed).any(axis=1))
    # how sure it is of the label that is most wrong
    apart = np.where(truth, 1 - found, found)[wrong].max(axis=1)
    order = wrong[np.argsort(-apart, kind="stable")][:SHOWN]
    return [
        {
            "text": data.texts[row],
            "label": _named(truth[row], labels),
            "predicted": _named(guessed[row], labels),
            "probability": round(float(np.where(truth[row], 1 - found[row], found[row]).max()), 4),
        }
        for row in order.tolist()
    ]


def confusions(matrix: NDArray[np.int_], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Which label is taken for which, the most frequent first.

    Args:
        matrix: Texts by true label (rows) and predicted one, shape (classes, classes).
        labels: Names of the classes.
    """
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:SHOWN]
    places = zip(*(part.tolist() for part in np.unravel_index(order, off.shape)), strict=True)
    totals = matrix.sum(axis=1)
    return [
        {
            "label": labels[row],
            "predicted": labels[column],
            "count": int(off[row, column]),
            "share": round(float(off[row, column] / totals[row]), 4),
        }
        for row, column in places
        if off[row, column]
    ]


def scores_by_length(texts: Sequence[Text], right: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Accuracy by number of words.

    Args:
        texts: Texts or pairs.
        right: Whether each is right, shape (texts,).
    """
    words = np.array([len((text if isinstance(text, str) else " ".join(text)).split()) for text in texts])
    buckets = np.searchsorted(LENGTHS, words, side="right")
    ends = [0, *LENGTHS]
    return [
        {
            "words": f"{ends[bucket]}-{LENGTHS[bucket] - 1}" if bucket < len(LENGTHS) else f"{LENGTHS[-1]} or more",
            "count": int((buckets == bucket).sum()),
            "accuracy": float(right[buckets == bucket].mean()),
        }
        for bucket in sorted(set(buckets.tolist()))
    ]


def likely_label_errors(data: LabelledTexts, found: NDArray[np.float64], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Texts whose label is likely wrong (confident learning, Northcutt et al., arXiv:1911.00068).

    A text counts as of another class where that one's probability reaches the mean that it has among the texts so
    labelled, and no other such class is likelier. The model must not have been trained on these texts.

    Args:
        data: Texts, one label each.
        found: Probabilities, shape (texts, classes).
        labels: Names of the classes.

    Returns:
        All of them with their number among the texts, the surest first: by how much likelier the other class is than
        the given one.
    """
    given = np.array([numbers[0] for numbers in data.labels])
    own = [found[given == number, number] for number in range(len(labels))]
    means = np.array([one.mean() if len(one) else np.inf for one in own])
    reached = np.where(found >= means, found, -1.0)
    other = reached.argmax(axis=1)
    rows = np.flatnonzero((reached.max(axis=1) >= 0) & (other != given))
    margin = found[rows, other[rows]] - found[rows, given[rows]]
    order = np.argsort(-margin, kind="stable")
    return [
        {
            "text": data.texts[row],
            "number": row + 1,
            "label": labels[int(given[row])],
            "likely": labels[int(other[row])],
            "margin": round(float(difference), 4),
        }
        for row, difference in zip(rows[order].tolist(), margin[order].tolist(), strict=True)
    ]


def _named(row: NDArray[np.bool_], labels: Sequence[str]) -> Any:
    names = [labels[number] for number in np.flatnonzero(row).tolist()]
    return names[0] if len(names) == 1 else names
