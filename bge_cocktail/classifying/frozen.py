"""What an encoder's frozen embeddings can do for the same labels: a logistic probe, and the nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.classifying.data import LabelledTexts
from bge_cocktail.encoding import Encoder
from bge_cocktail.errors import UsageError
from bge_cocktail.records.labelled import Text
from bge_cocktail.search import top_k
from bge_cocktail.tasks.classification import features

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
Floats = NDArray[np.float32]


def probe(encoder: Encoder, train: LabelledTexts, dev: LabelledTexts, texts: Sequence[Text]) -> dict[str, Any]:
    """Logistic regression on frozen embeddings, its strength chosen on dev.

    Args:
        encoder: Embeds.
        train: Learned from, one label each.
        dev: Chooses C.
        texts: Predicted.

    Returns:
        ``predicted`` class of each text, and the ``C`` chosen.
    """
    from sklearn.linear_model import LogisticRegression

    _one_label(train)
    known, held = features(encoder, train.texts), features(encoder, dev.texts)
    truth, wanted = _labels(train), _labels(dev)
    fitted = [LogisticRegression(C=strength, max_iter=2000).fit(known, truth) for strength in STRENGTHS]
    best = int(np.argmax([float((one.predict(held) == wanted).mean()) for one in fitted]))
    return {"predicted": fitted[best].predict(features(encoder, texts)), "C": STRENGTHS[best]}


def nearest_neighbours(
    encoder: Encoder, train: LabelledTexts, dev: LabelledTexts, texts: Sequence[Text], classes: int
) -> dict[str, Any]:
    """The label that the nearest texts of train vote for, by their similarity; how many vote is chosen on dev.

    Args:
        encoder: Embeds.
        train: Votes, one label each.
        dev: Chooses k.
        texts: Predicted.
        classes: How many labels there are.

    Returns:
        ``predicted`` class of each text, and the ``k`` chosen.
    """
    _one_label(train)
    known, truth = _unit(features(encoder, train.texts)), _labels(train)
    depth = min(NEIGHBOURS[-1], len(truth))

    def neighbours(of: Sequence[Text]) -> tuple[NDArray[np.int64], Floats]:
        similarities, rows = top_k(_unit(features(encoder, of)), known, depth)
        return truth[rows], similarities

    def vote(labels: NDArray[np.int64], similarities: Floats, count: int) -> NDArray[np.int64]:
        votes = np.zeros((len(labels), classes))
        rows = np.repeat(np.arange(len(labels))[:, None], count, axis=1)
        np.add.at(votes, (rows, labels[:, :count]), np.maximum(similarities[:, :count], 0))
        return np.asarray(votes.argmax(axis=1), np.int64)

    wanted, held = _labels(dev), neighbours(dev.texts)
    counts = [count for count in NEIGHBOURS if count <= depth]
    best = counts[int(np.argmax([float((vote(*held, count) == wanted).mean()) for count in counts]))]
    return {"predicted": vote(*neighbours(texts), best), "k": best}


def _labels(data: LabelledTexts) -> NDArray[np.int64]:
    return np.array([own[0] for own in data.labels], np.int64)


def _one_label(data: LabelledTexts) -> None:
    if any(len(own) != 1 for own in data.labels):
        raise UsageError("probe and nearest neighbours take texts with one label each")


def _unit(rows: Floats) -> Floats:
    found: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(found)
