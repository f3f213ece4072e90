"""Labelled texts: labels told from frozen embeddings (classification), or found without them (clustering)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.core.runs import note_finding
from bge_cocktail.data.labelled import DataFolder, LabelledTexts, read_labelled
from bge_cocktail.data.record import Text, pair_key
from bge_cocktail.data.record_files import spread
from bge_cocktail.evaluating.measures import macro_f1
from bge_cocktail.evaluating.scores import Score
from bge_cocktail.evaluating.tasks.task import MapText, Task, TaskKind, interval_of, rows_of_texts, tasks
from bge_cocktail.models.encoder import Encoder
from bge_cocktail.options import EvaluateOptions
from bge_cocktail.search.exact import top_k, unit_rows

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
    best = 0 if dev is None else _best([np.asarray(probe.predict(dev[0])) for probe in fitted], dev[1])
    return np.asarray(fitted[best].predict(asked), np.int64), strengths[best]


def knn(train: LabelledEmbeddings, dev: LabelledEmbeddings | None, asked: Floats) -> tuple[Classes, int]:
    """The class that the nearest texts of train vote for by their cosine, their number chosen on dev (10 without it).

    See `logistic` for the arguments.

    Returns:
        The class of each text asked, and how many vote.
    """
    known, truth = unit_rows(train[0]), train[1]
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
    drawn = []
    for _ in range(EXPERIMENTS):
        # seeded anew, but what is shuffled was shuffled before
        np.random.RandomState(MTEB_SEED).shuffle(order)
        rows = _first_of_each(train[1], order)
        probe = LogisticRegression(max_iter=100, random_state=MTEB_SEED).fit(train[0][rows], train[1][rows])
        drawn.append(np.asarray(probe.predict(asked), np.int64))
    return drawn


def _first_of_each(truth: Classes, order: list[int]) -> list[int]:
    """Return the first 8 rows of each class, in the order given."""
    left = dict.fromkeys(truth.tolist(), PER_LABEL)
    rows = []
    for row, label in zip(order, truth[order].tolist(), strict=True):
        if left[label]:
            left[label] -= 1
            rows.append(row)
    return rows


def _votes(known: Floats, truth: Classes, asked: Floats, counts: list[int], depth: int) -> dict[int, Classes]:
    similarities, rows = top_k(unit_rows(asked), known, depth)
    predicted = {}
    for count in counts:
        votes = np.zeros((len(asked), int(truth.max()) + 1))
        places = np.repeat(np.arange(len(asked))[:, None], count, axis=1)
        np.add.at(votes, (places, truth[rows[:, :count]]), np.maximum(similarities[:, :count], 0))
        predicted[count] = np.asarray(votes.argmax(axis=1), np.int64)
    return predicted


def _best(guesses: list[Classes], wanted: Classes) -> int:
    return int(np.argmax([float((guess == wanted).mean()) for guess in guesses]))


# k-means ends elsewhere from other starts: the mean of so many
STARTS, FIRST_SEED = 10, 42
BATCH = 512
# resamples of clusters, each judged ten times
RESAMPLES = 1000
# numbers of a table of classes by clusters, for many samples
_AT_ONCE = 1 << 21


@dataclass(frozen=True, slots=True)
class ClassificationData:
    """What a probe learns from, has C and k chosen on (where there is a dev that isn't judged), and is judged by."""

    train: LabelledTexts
    dev: LabelledTexts | None
    test: LabelledTexts


def _some(data: LabelledTexts, limit: int) -> LabelledTexts:
    return data.at(spread(range(len(data)), limit))


class Classification(TaskKind):
    """A probe on frozen embeddings of labelled texts or pairs: accuracy, macro-F1."""

    order = 90  # any other kind of rows is told by its columns
    learns = True
    mteb = ("Classification", "accuracy")

    def recognises(self, folder: DataFolder) -> bool:
        """Return whether there is something to learn from."""
        return "train" in folder.splits and not folder.holds("corpus.jsonl")

    def read(self, folder: DataFolder, split: str) -> ClassificationData:
        """Return train, dev and the split that is judged.

        Raises:
            DataError: A file is missing or broken, train has one label only, or a label isn't in train.
        """
        train = read_labelled(folder, "train")
        if len(train.names) < 2:
            raise DataError(f"{folder.file('train')} holds one label only ({train.names[0]}); a probe needs two")
        test = train if split == "train" else read_labelled(folder, split, train.names)
        # C and k aren't chosen on what is judged, by whichever name it goes
        apart = "dev" in folder.splits and folder.file("dev") != folder.file(split)
        dev = read_labelled(folder, "dev", train.names) if apart else None
        return ClassificationData(train, dev, test)

    def limited(self, data: ClassificationData, limit: int) -> ClassificationData:
        """See `TaskKind.limited`; what the probe learns from stays whole."""
        return replace(data, test=_some(data.test, limit))

    def judge(self, encoder: Encoder, task: Task, options: EvaluateOptions) -> list[Score]:
        """See `TaskKind.judge`."""
        data: ClassificationData = task.data(options.split)
        names = data.train.names
        if data.test is not data.train:
            known = {pair_key(text) for text in data.train.texts}
            if count := sum(pair_key(text) in known for text in data.test.texts):
                note_finding("test repeats train", task.name, count, len(data.test))
        train, queries = _labelled_embeddings(encoder, data.train), features(encoder, data.test.texts)
        dev = None if data.dev is None else _labelled_embeddings(encoder, data.dev)
        if options.probe == "few":
            predictions = few_texts(train, queries)
        else:
            predictions = [(logistic if options.probe == "full" else knn)(train, dev, queries)[0]]
        truth = data.test.classes()
        ids = [f"{options.split}:{line}" for line in range(1, len(truth) + 1)]
        # of several experiments, the share that are right
        right = np.mean([predicted == truth for predicted in predictions], axis=0)
        pairs = [np.stack([truth, predicted], axis=1).astype(float) for predicted in predictions]
        f1 = [float(macro_f1_of_samples(pair[None], len(names))[0]) for pair in pairs]

        def mean_f1(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
            columns = range(0, drawn.shape[-1], 2)
            values = [macro_f1_of_samples(drawn[..., column : column + 2], len(names)) for column in columns]
            return np.asarray(np.mean(values, axis=0))

        interval = interval_of(options)
        return [
            task.score(
                "accuracy",
                float(right.mean()),
                interval(right),
                len(truth),
                main=True,
                per_query=dict(zip(ids, right.tolist(), strict=True)),
                answers={name: names[predicted] for name, predicted in zip(ids, predictions[0].tolist(), strict=True)},
            ),
            task.score(
                "macro-F1",
                float(np.mean(f1)),
                interval(np.concatenate(pairs, axis=1), statistic=mean_f1),
                len(truth),
            ),
        ]

    def texts(self, data: ClassificationData, split: str, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the texts with their labels."""
        return rows_of_texts(data.test.texts, data.test.class_names(), split)

    def map_texts(self, data: ClassificationData, count: int, generator: np.random.Generator) -> list[MapText]:
        """Return a draw of single texts."""
        return _texts_for_map(data.test, count, generator)

    def to_mteb(self, task: Task, split: str, made: Any) -> None:
        """See `TaskKind.to_mteb`; mteb has no classification of pairs."""
        from datasets import Dataset, DatasetDict

        data: ClassificationData = task.data(split)
        if data.train.pairs:
            raise UsageError(f"{task.name}: mteb has no classification of pairs; evaluate it as a task of ours")
        parts = {"train": data.train, split: data.test}
        made.dataset = {
            "default": DatasetDict(
                {
                    name: Dataset.from_dict({"text": list(part.texts), "label": part.classes().tolist()})
                    for name, part in parts.items()
                }
            )
        }


class Clustering(TaskKind):
    """k-means on embeddings of labelled texts, one cluster a label: V-measure, the mean over ten starts."""

    mteb = ("Clustering", "v_measure")

    def read(self, folder: DataFolder, split: str) -> LabelledTexts:
        """Return the texts and their classes.

        Raises:
            DataError: Pairs of texts, or one class only.
        """
        data = read_labelled(folder, split)
        if data.pairs:
            raise DataError(f"{folder.file(split)} holds pairs; clustering takes single texts")
        if len(data.names) < 2:
            raise DataError(f"{folder.file(split)} holds one label only ({data.names[0]}); clustering needs two")
        return data

    def limited(self, data: LabelledTexts, limit: int) -> LabelledTexts:
        """See `TaskKind.limited`."""
        return _some(data, limit)

    def judge(self, encoder: Encoder, task: Task, options: EvaluateOptions) -> list[Score]:
        """See `TaskKind.judge`."""
        from sklearn.cluster import MiniBatchKMeans

        data: LabelledTexts = task.data(options.split)
        embeddings = encoder.encode_text([text for text in data.texts if isinstance(text, str)])
        classes = len(data.names)
        clusters = [
            MiniBatchKMeans(classes, batch_size=BATCH, n_init=1, random_state=FIRST_SEED + start).fit_predict(
                embeddings
            )
            for start in range(STARTS)
        ]
        both = np.stack([data.classes(), *clusters], axis=1).astype(float)

        def mean_over_starts(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
            values = [v_measure(drawn[..., [0, 1 + start]].astype(np.int64), classes) for start in range(STARTS)]
            return np.asarray(np.mean(values, axis=0))

        value = float(mean_over_starts(both[None])[0])
        interval = interval_of(options)(both, resamples=RESAMPLES, statistic=mean_over_starts)
        return [task.score("V-measure", value, interval, len(data), main=True)]

    def texts(self, data: LabelledTexts, split: str, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the texts with their labels."""
        return rows_of_texts(data.texts, data.class_names(), split)

    def map_texts(self, data: LabelledTexts, count: int, generator: np.random.Generator) -> list[MapText]:
        """Return a draw of the texts."""
        return _texts_for_map(data, count, generator)

    def to_mteb(self, task: Task, split: str, made: Any) -> None:
        """See `TaskKind.to_mteb`."""
        from datasets import Dataset, DatasetDict

        data: LabelledTexts = task.data(split)
        columns = {"sentences": list(data.texts), "labels": data.class_names()}
        made.dataset = {"default": DatasetDict({split: Dataset.from_dict(columns)})}
        made.max_fraction_of_documents_to_embed = None  # all of them, not 4 %


tasks("classification")(Classification())
tasks("clustering")(Clustering())


def _texts_for_map(data: LabelledTexts, count: int, generator: np.random.Generator) -> list[MapText]:
    """Return a draw of the texts, coloured by their labels; pairs have no place on a map."""
    rows = sorted(generator.permutation(len(data))[:count].tolist())
    labels = data.class_names()
    return [MapText("text", text, labels[row]) for row in rows if isinstance(text := data.texts[row], str)]


def features(encoder: Encoder, texts: Sequence[Text]) -> NDArray[np.float32]:
    """Embeddings of texts; of pairs ``[u, v, |u - v|, u * v]`` (InferSent, arXiv:1705.02364).

    Returns:
        Shape (texts, dimensions), or (texts, 4 x dimensions) of pairs.
    """
    if not any(isinstance(text, tuple) for text in texts):
        return encoder.encode_text([text for text in texts if isinstance(text, str)])
    first, second = (encoder.encode_text([text[side] for text in texts]) for side in (0, 1))
    return np.concatenate([first, second, np.abs(first - second), first * second], axis=1)


def _labelled_embeddings(encoder: Encoder, data: LabelledTexts) -> LabelledEmbeddings:
    return features(encoder, data.texts), data.classes()


def macro_f1_of_samples(pairs: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
    """Return `macro_f1` of many samples at once.

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
    return macro_f1(hits, total)


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
