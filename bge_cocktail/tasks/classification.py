"""Classification: labels told from frozen embeddings."""

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
from bge_cocktail.tasks import probing
from bge_cocktail.tasks.score import Role, Score, tasks


@tasks("classification")
def classification(encoder: Encoder, path: Path, name: str, role: Role, options: Evaluating) -> list[Score]:
    """A probe on frozen embeddings of labelled texts or pairs: accuracy, macro-F1."""
    train, test = read_split(path, options.split)
    dev = read_dev(path, options.split, train)
    labels = sorted(set(train.labels))
    known, asked = _known(encoder, train, labels), features(encoder, test.texts)
    held = None if dev is None else _known(encoder, dev, labels)
    if options.probe == "few":
        guesses = probing.few_texts(known, asked)
    else:
        way = probing.logistic if options.probe == "full" else probing.nearest
        guesses = [way(known, held, asked)[0]]
    truth = _numbers(test, labels)
    ids = [f"{options.split}:{line}" for line in range(1, len(truth) + 1)]
    # of several experiments, the share that are right
    right = np.mean([guess == truth for guess in guesses], axis=0)
    pairs = [np.stack([truth, guess], axis=1).astype(float) for guess in guesses]
    f1 = [float(macro_f1(one[None], len(labels))[0]) for one in pairs]
    interval = partial(bootstrap_interval, confidence=options.confidence, seed=options.seed)
    score = partial(Score, task=name, kind="classification", role=role, count=len(truth))
    return [
        score(
            metric="accuracy",
            value=float(right.mean()),
            interval=interval(right),
            main=True,
            per_query=dict(zip(ids, right.tolist(), strict=True)),
            answers={one: labels[guess] for one, guess in zip(ids, guesses[0].tolist(), strict=True)},
        ),
        score(
            metric="macro-F1",
            value=float(np.mean(f1)),
            interval=interval(
                np.concatenate(pairs, axis=1),
                statistic=lambda drawn: np.mean(
                    [macro_f1(drawn[..., at : at + 2], len(labels)) for at in range(0, drawn.shape[-1], 2)], axis=0
                ),
            ),
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
    _check_labels(test, known, f"{path}/{split}.jsonl")
    return train, test


def read_dev(path: Path, split: str, train: Labelled) -> Labelled | None:
    """What C and k are chosen on: dev, if there is one and it isn't what is judged.

    Raises:
        DataError: It is broken, or has a label that isn't in train.
    """
    if split == "dev" or not (path / "dev.jsonl").is_file():
        return None
    dev = read_labelled(path, "dev")
    _check_labels(dev, sorted(set(train.labels)), f"{path}/dev.jsonl")
    return dev


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


def _check_labels(data: Labelled, known: Sequence[str], where: str) -> None:
    for label in data.labels:
        if label not in known:
            raise DataError(f"{where}: label '{label}' isn't in train.{nearest(label, known)}")


def _known(encoder: Encoder, data: Labelled, labels: Sequence[str]) -> probing.Known:
    return features(encoder, data.texts), _numbers(data, labels)


def _numbers(data: Labelled, labels: Sequence[str]) -> NDArray[np.int64]:
    places = {label: place for place, label in enumerate(labels)}
    return np.array([places[label] for label in data.labels], np.int64)
