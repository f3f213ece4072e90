"""Labels told from frozen embeddings: a logistic probe, mteb's draws of few texts, the nearest neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.search import top_k

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
# where there is no dev to choose them on
STRENGTH, NEIGHBOUR_COUNT = 1.0, 10
# mteb's protocol
EXPERIMENTS, PER_LABEL, MTEB_SEED = 10, 8, 42
Floats = NDArray[np.float32]
Classes = NDArray[np.int64]
Known = tuple[Floats, Classes]
"""Embeddings, shape (texts, dimensions), and the class of each, shape (texts,)."""


def logistic(train: Known, dev: Known | None, asked: Floats) -> tuple[Classes, float]:
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


def nearest(train: Known, dev: Known | None, asked: Floats) -> tuple[Classes, int]:
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


def few_texts(train: Known, asked: Floats) -> list[Classes]:
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
