"""Classification: a logistic probe over frozen embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.encoding import Encoder
from bge_cocktail.errors import DataError, nearest
from bge_cocktail.options import Evaluating
from bge_cocktail.records.labelled import Labelled, Text, read_labelled
from bge_cocktail.statistics import bootstrap_interval
from bge_cocktail.tasks.score import Role, Score, tasks


@tasks("classification")
def classification(encoder: Encoder, path: Path, name: str, role: Role, options: Evaluating) -> list[Score]:
    """Logistic regression on frozen embeddings of labelled texts or pairs: accuracy, macro-F1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import LabelEncoder

    train, test = read_split(path, options.split)
    labels = LabelEncoder().fit(train.labels)
    probe = LogisticRegression(C=1.0, max_iter=1000)
    probe.fit(features(encoder, train.texts), labels.transform(train.labels))
    predicted = probe.predict(features(encoder, test.texts))
    truth = labels.transform(test.labels)
    right = (predicted == truth).astype(float)

    def score(metric: str, value: float, interval: tuple[float, float], per_query: Sequence[float]) -> Score:
        return Score(
            task=name,
            kind="classification",
            role=role,
            metric=metric,
            value=value,
            interval=interval,
            count=len(truth),
            main=metric == "accuracy",
            per_query={f"{options.split}:{line}": one for line, one in enumerate(per_query, start=1)},
        )

    interval = partial(bootstrap_interval, confidence=options.confidence, seed=options.seed)
    classes = len(labels.classes_)
    pairs = np.stack([truth, predicted], axis=1).astype(float)
    return [
        score("accuracy", float(right.mean()), interval(right), right.tolist()),
        score(
            "macro-F1",
            float(macro_f1(pairs[None], classes)[0]),
            interval(pairs, statistic=lambda drawn: macro_f1(drawn, classes)),
            (),
        ),
    ]


def features(encoder: Encoder, texts: Sequence[Text]) -> NDArray[np.float32]:
    """Embeddings of texts; of pairs ``[u, v, |u - v|, u * v]`` (InferSent, arXiv:1705.02364).

    Returns:
        Shape (texts, dimensions), or (texts, 4 x dimensions) of pairs.
    """
    if not any(isinstance(text, tuple) for text in texts):
        return encoder.encode_text([text for text in texts if isinstance(text, str)])
    first, second = (encoder.encode_text([text[side] for text in texts]) for side in (0, 1))
    return np.concatenate([first, second, np.abs(first - second), first * second], axis=1)


def read_split(path: Path, split: str) -> tuple[Labelled, Labelled]:
    """The train split that the probe learns from, and the split that is judged.

    Raises:
        DataError: A file is missing or broken, train has one label only, or a label isn't in train.
    """
    train, test = read_labelled(path, "train"), read_labelled(path, split)
    known = sorted(set(train.labels))
    if len(known) < 2:
        raise DataError(f"{path}/train.jsonl holds one label only ({known[0]}); a probe needs two")
    for label in test.labels:
        if label not in known:
            raise DataError(f"{path}/{split}.jsonl: label '{label}' isn't in train.{nearest(label, known)}")
    return train, test


def macro_f1(pairs: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
    """Mean over the classes of the harmonic mean of precision and recall, for many samples at once.

    A class that is neither in the truth nor predicted in a sample doesn't count in its mean.

    Args:
        pairs: True and predicted class, shape (samples, texts, 2).
        classes: How many there are.

    Returns:
        Shape (samples,).
    """
    truth, predicted = pairs[..., 0].astype(int), pairs[..., 1].astype(int)
    samples = len(pairs)

    def counts(values: NDArray[np.int_], where: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        flat = values + classes * np.arange(samples)[:, None]
        flat = flat.ravel() if where is None else flat[where]
        return np.bincount(flat, minlength=samples * classes).reshape(samples, classes).astype(float)

    hits = counts(truth, truth == predicted)
    total = counts(truth) + counts(predicted)
    seen = total > 0
    f1 = np.divide(2 * hits, total, out=np.zeros_like(hits), where=seen)
    return np.asarray(f1.sum(axis=1) / seen.sum(axis=1))
