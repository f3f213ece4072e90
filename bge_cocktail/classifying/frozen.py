"""What an encoder's frozen embeddings can do for the same labels: a logistic probe, and the nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bge_cocktail.classifying.data import LabelledTexts
from bge_cocktail.encoding import Encoder
from bge_cocktail.errors import UsageError
from bge_cocktail.records.labelled import Text
from bge_cocktail.tasks.classification import features
from bge_cocktail.tasks.probing import Known, logistic, nearest


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
    predicted, strength = logistic(_known(encoder, train), _known(encoder, dev), features(encoder, texts))
    return {"predicted": predicted, "C": strength}


def nearest_neighbours(
    encoder: Encoder, train: LabelledTexts, dev: LabelledTexts, texts: Sequence[Text]
) -> dict[str, Any]:
    """The label that the nearest texts of train vote for, by their similarity; how many vote is chosen on dev.

    See `probe` for the arguments.

    Returns:
        ``predicted`` class of each text, and the ``k`` chosen.
    """
    predicted, count = nearest(_known(encoder, train), _known(encoder, dev), features(encoder, texts))
    return {"predicted": predicted, "k": count}


def _known(encoder: Encoder, data: LabelledTexts) -> Known:
    if any(len(own) != 1 for own in data.labels):
        raise UsageError("probe and nearest neighbours take texts with one label each")
    return features(encoder, data.texts), np.array([own[0] for own in data.labels], np.int64)
