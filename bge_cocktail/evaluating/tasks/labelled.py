"""Labelled texts: labels told from frozen embeddings (classification), or found without them (clustering)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import DataError, nearest
from bge_cocktail.data.labelled import Labelled, read_labelled
from bge_cocktail.data.record import Text
from bge_cocktail.evaluating.intervals import bootstrap_interval
from bge_cocktail.evaluating.scores import Role, Score, tasks
from bge_cocktail.models.encoder import Encoder
from bge_cocktail.options import EvaluateOptions
from bge_cocktail.search.exact import top_k

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
# where there is no dev to choose them on
STRENGTH, NEIGHBOUR_COUNT = 1.0, 10


# mteb's protocol
EXPERIMENTS, PER_LABEL, MTEB_SEED = 10, 8, 42


Floats = NDArray[np.float32]
Classes = NDArray[np.int64]
LabelledEmbeddings = tuple[Floats, Classes]
"""Embeddings, shape (texts, dimensions), and the class of each, shape (texts,)."""


def logistic(train: LabelledEmbeddings, dev: LabelledEmbeddings | None, asked: Floats) -> tuple[Classes, float]:
    """Logistic regression, its strength C chosen on dev.

    Args:
        train: Learned from.
        dev: Chooses C; without it, C is 1.
        asked: Embeddings of the texts to tell, shape (texts, dimensions).

    Returns:
        The class of each text asked, and C.
    """
    from sklearn.linear_model import LogisticRegression

    strengths = STRENGTHS if dev is not None else (STRENGTH,)
    fitted = [LogisticRegression(C=strength, max_iter=2000).fit(*train) for strength in strengths]
    best = 0 if dev is None else _best([np.asarray(one.predict(dev[0])) for one in fitted], dev[1])
    return np.asarray(fitted[best].predict(asked), np.int64), strengths[best]


def knn(train: LabelledEmbeddings, dev: LabelledEmbeddings | None, asked: Floats) -> tuple[Classes, int]:
    """The class that the nearest texts of train vote for by their cosine, their number chosen on dev (10 without it).

    See `logistic` for the arguments.

    Returns:
        The class of each text asked, and how many vote.
    """
    known, truth = _unit(train[0]), train[1]
    depth = min(NEIGHBOURS[-1] if dev is not None else NEIGHBOUR_COUNT, len(truth))
    counts = [count for count in NEIGHBOURS if count <= depth] if dev is not None else [depth]
    votes = {} if dev is None else _votes(known, truth, dev[0], counts, depth)
    best = counts[0] if dev is None else counts[_best([votes[count] for count in counts], dev[1])]
    return _votes(known, truth, asked, [best], depth)[best], best


def few_texts(train: LabelledEmbeddings, asked: Floats) -> list[Classes]:
    """mteb's protocol: ten logistic regressions, each on 8 texts drawn of each class.

    Returns:
        The classes of the texts asked, of each of the ten; the same draws as mteb 2's.
    """
    from sklearn.linear_model import LogisticRegression

    order = list(range(len(train[1])))
    found = []
    for _ in range(EXPERIMENTS):
        # seeded anew, but what is shuffled was shuffled before
        np.random.RandomState(MTEB_SEED).shuffle(order)
        rows = _first_of_each(train[1], order)
        probe = LogisticRegression(max_iter=100, random_state=MTEB_SEED).fit(train[0][rows], train[1][rows])
        found.append(np.asarray(probe.predict(asked), np.int64))
    return found


def _first_of_each(truth: Classes, order: list[int]) -> list[int]:
    """The first 8 rows of each class, in the order given."""
    left = dict.fromkeys(truth.tolist(), PER_LABEL)
    rows = []
    for row, label in zip(order, truth[order].tolist(), strict=True):
        if left[label]:
            left[label] -= 1
            rows.append(row)
    return rows


def _votes(known: Floats, truth: Classes, asked: Floats, counts: list[int], depth: int) -> dict[int, Classes]:
    similarities, rows = top_k(_unit(asked), known, depth)
    found = {}
    for count in counts:
        votes = np.zeros((len(asked), int(truth.max()) + 1))
        places = np.repeat(np.arange(len(asked))[:, None], count, axis=1)
        np.add.at(votes, (places, truth[rows[:, :count]]), np.maximum(similarities[:, :count], 0))
        found[count] = np.asarray(votes.argmax(axis=1), np.int64)
    return found


def _best(guesses: list[Classes], wanted: Classes) -> int:
    return int(np.argmax([float((guess == wanted).mean()) for guess in guesses]))


def _unit(rows: Floats) -> Floats:
    found: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(found)


@tasks("classification")
def classification(encoder: Encoder, path: Path, name: str, role: Role, options: EvaluateOptions) -> list[Score]:
    """A probe on frozen embeddings of labelled texts or pairs: accuracy, macro-F1."""
    train, test = read_split(path, options.split)
    dev = read_dev(path, options.split, train)
    labels = sorted(set(train.labels))
    known, asked = _labelled_embeddings(encoder, train, labels), features(encoder, test.texts)
    held = None if dev is None else _labelled_embeddings(encoder, dev, labels)
    if options.probe == "few":
        guesses = few_texts(known, asked)
    else:
        way = logistic if options.probe == "full" else knn
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


def _labelled_embeddings(encoder: Encoder, data: Labelled, labels: Sequence[str]) -> LabelledEmbeddings:
    return features(encoder, data.texts), _numbers(data, labels)


def _numbers(data: Labelled, labels: Sequence[str]) -> NDArray[np.int64]:
    places = {label: place for place, label in enumerate(labels)}
    return np.array([places[label] for label in data.labels], np.int64)


# k-means ends elsewhere from other starts: the mean of so many
STARTS, FIRST_SEED = 10, 42


BATCH = 512
# numbers of a table of classes by clusters, for many samples
_AT_ONCE = 1 << 21


RESAMPLES = 1000


@tasks("clustering")
def clustering(encoder: Encoder, path: Path, name: str, role: Role, options: EvaluateOptions) -> list[Score]:
    """k-means on embeddings of labelled texts, one cluster a label: V-measure, the mean over ten starts."""
    from sklearn.cluster import MiniBatchKMeans

    data = read_clustering(path, options.split)
    labels, truth = np.unique(np.array(data.labels), return_inverse=True)
    embeddings = encoder.encode_text([text for text in data.texts if isinstance(text, str)])
    clusters = np.stack(
        [
            MiniBatchKMeans(len(labels), batch_size=BATCH, n_init=1, random_state=FIRST_SEED + start).fit_predict(
                embeddings
            )
            for start in range(STARTS)
        ],
        axis=1,
    )
    both = np.concatenate([truth[:, None], clusters], axis=1).astype(float)

    def mean_over_starts(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        found = [v_measure(drawn[..., [0, 1 + start]].astype(np.int64), len(labels)) for start in range(STARTS)]
        return np.asarray(np.mean(found, axis=0))

    return [
        Score(
            task=name,
            kind="clustering",
            role=role,
            metric="V-measure",
            value=float(mean_over_starts(both[None])[0]),
            interval=bootstrap_interval(
                both, confidence=options.confidence, seed=options.seed, resamples=RESAMPLES, statistic=mean_over_starts
            ),
            count=len(truth),
            main=True,
        )
    ]


def read_clustering(path: Path, split: str) -> Labelled:
    """The texts and their classes.

    Raises:
        DataError: Pairs of texts, or one class only.
    """
    data = read_labelled(path, split)
    if any(isinstance(text, tuple) for text in data.texts):
        raise DataError(f"{path}/{split}.jsonl holds pairs; clustering takes single texts")
    if len(set(data.labels)) < 2:
        raise DataError(f"{path}/{split}.jsonl holds one label only ({data.labels[0]}); clustering needs two")
    return data


def v_measure(pairs: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Harmonic mean of homogeneity and completeness, for many samples at once.

    (Rosenberg and Hirschberg 2007, aclanthology.org/D07-1043.)

    Args:
        pairs: True class and cluster, shape (samples, texts, 2), both below `classes`.
        classes: How many there are.

    Returns:
        Shape (samples,).
    """
    block = max(1, _AT_ONCE // classes**2)
    if len(pairs) > block:
        parts = [v_measure(pairs[start : start + block], classes) for start in range(0, len(pairs), block)]
        return np.concatenate(parts)
    samples, texts = pairs.shape[:2]
    cells = pairs[..., 0] * classes + pairs[..., 1] + classes**2 * np.arange(samples)[:, None]
    joint = np.bincount(cells.ravel(), minlength=samples * classes**2).reshape(samples, classes, classes) / texts
    of_classes, of_clusters = _entropy(joint.sum(axis=2)), _entropy(joint.sum(axis=1))
    together = of_classes + of_clusters - _entropy(joint.reshape(samples, -1))
    homogeneity = np.divide(together, of_classes, out=np.ones(samples), where=of_classes > 0)
    completeness = np.divide(together, of_clusters, out=np.ones(samples), where=of_clusters > 0)
    total = homogeneity + completeness
    return np.asarray(np.divide(2 * homogeneity * completeness, total, out=np.zeros(samples), where=total > 1e-12))


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(-(shares * logs).sum(axis=1))
