"""Clustering: whether k-means finds the classes of texts by their embeddings alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.encoding import Encoder
from bge_cocktail.errors import DataError
from bge_cocktail.options import Evaluating
from bge_cocktail.records.labelled import Labelled, read_labelled
from bge_cocktail.statistics import bootstrap_interval
from bge_cocktail.tasks.score import Role, Score, tasks

# k-means ends elsewhere from other starts: the mean of so many
STARTS, FIRST_SEED = 10, 42
BATCH = 512
# numbers of a table of classes by clusters, for many samples
_AT_ONCE = 1 << 21
RESAMPLES = 1000


@tasks("clustering")
def clustering(encoder: Encoder, path: Path, name: str, role: Role, options: Evaluating) -> list[Score]:
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
