"""Pairs of texts: similarity against scores (STS), and telling pairs that belong together from others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import DataError
from bge_cocktail.data.labelled import ScoredPairs, read_scored
from bge_cocktail.evaluating.intervals import bootstrap_interval
from bge_cocktail.evaluating.scores import Role, Score, tasks
from bge_cocktail.models.encoder import Encoder
from bge_cocktail.options import EvaluateOptions

Floats = NDArray[np.float64]
# correlations of resamples are computed one by one; so many tell the interval to its third digit
RESAMPLES = 1000


@tasks("sts")
def sts(encoder: Encoder, path: Path, name: str, role: Role, options: EvaluateOptions) -> list[Score]:
    """Cosine of pairs of texts against their scores: Spearman's and Pearson's correlation."""
    from scipy.stats import pearsonr, spearmanr

    pairs = read_scored(path, options.split)
    found = cosines(encoder, pairs)
    wanted = np.array(pairs.scores)
    if np.ptp(found) == 0:
        raise DataError(f"{name}: the model gives all pairs the same similarity")
    return [
        _score(name, "sts", role, "Spearman", float(spearmanr(found, wanted).statistic), True,
               _interval(found, wanted, options, rank_correlations), len(wanted), _answers(found, options.split)),
        _score(name, "sts", role, "Pearson", float(pearsonr(found, wanted).statistic), False,
               _interval(found, wanted, options, _correlations), len(wanted)),
    ]  # fmt: skip


@tasks("pair-classification")
def pair_classification(encoder: Encoder, path: Path, name: str, role: Role, options: EvaluateOptions) -> list[Score]:
    """Cosine of pairs that belong together or don't (score 1 or 0): average precision, the best F1 and accuracy."""
    pairs = read_scored(path, options.split)
    check_binary(pairs, name, options.split)
    found, wanted = cosines(encoder, pairs), np.array(pairs.scores)
    return [
        _score(name, "pair-classification", role, metric, float(of(found[None], wanted[None])[0]), metric == "AP",
               _interval(found, wanted, options, of), len(wanted),
               _answers(found, options.split) if metric == "AP" else {})
        for metric, of in (("AP", average_precision), ("best F1", _best_f1), ("best accuracy", _best_accuracy))
    ]  # fmt: skip


def check_binary(pairs: ScoredPairs, name: str, split: str) -> None:
    """Refuse graded scores where pairs only belong together or don't.

    Raises:
        DataError: With one of them.
    """
    graded = next((score for score in pairs.scores if score not in (0.0, 1.0)), None)
    if graded is not None:
        raise DataError(f"{name} ({split}): the score {graded:g} among pairs of 0 and 1; keep graded splits apart")


def cosines(encoder: Encoder, pairs: ScoredPairs) -> Floats:
    """Cosine of each pair, shape (pairs,)."""
    first, second = (encoder.encode_text(list(texts)).astype(np.float64) for texts in (pairs.first, pairs.second))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray((first * second).sum(axis=1) / np.maximum(lengths, 1e-12))


def _score(
    name: str,
    kind: str,
    role: Role,
    metric: str,
    value: float,
    main: bool,
    interval: tuple[float, float],
    count: int,
    answers: Mapping[str, float] | None = None,
) -> Score:
    return Score(name, kind, role, metric, value, interval, count, main, answers=answers or {})


def _answers(found: Floats, split: str) -> dict[str, float]:
    return {f"{split}:{line}": round(one, 6) for line, one in enumerate(found.tolist(), start=1)}


def _interval(
    found: Floats, wanted: Floats, options: EvaluateOptions, of: Callable[[Floats, Floats], Floats]
) -> tuple[float, float]:
    both = np.stack([found, wanted], axis=1)

    def statistic(drawn: Floats) -> Any:
        return of(drawn[..., 0], drawn[..., 1])

    return bootstrap_interval(
        both, confidence=options.confidence, seed=options.seed, resamples=RESAMPLES, statistic=statistic
    )


def rank_correlations(found: Floats, wanted: Floats) -> Floats:
    """Spearman's correlation of each row, shape (samples,): of ranks within the row, equal ones sharing theirs."""
    from scipy.stats import rankdata

    return _correlations(rankdata(found, axis=1), rankdata(wanted, axis=1))


def _correlations(found: Floats, wanted: Floats) -> Floats:
    """Pearson's correlation of each row, shape (samples,)."""
    one, other = (values - values.mean(axis=1, keepdims=True) for values in (found, wanted))
    lengths = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return np.asarray((one * other).sum(axis=1) / np.maximum(lengths, 1e-30))


def _swept(found: Floats, wanted: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """How many pairs belong together down to each place in the order of similarity; and where a threshold can be."""
    order = np.argsort(-found, axis=1, kind="stable")
    sorted_found = np.take_along_axis(found, order, 1)
    hits = np.cumsum(np.take_along_axis(wanted, order, 1), axis=1)
    # equal similarities are on the same side of any threshold
    ends = np.concatenate([sorted_found[:, 1:] != sorted_found[:, :-1], np.ones((len(found), 1), bool)], axis=1)
    return hits, ends


def average_precision(found: Floats, wanted: Floats) -> Floats:
    """Average precision of each row, shape (samples,); equal similarities are told apart by no threshold."""
    hits, ends = _swept(found, wanted)
    precision = hits / np.arange(1, found.shape[1] + 1)
    total = np.maximum(hits[:, -1], 1)
    values = []
    for row in range(len(found)):
        places = np.flatnonzero(ends[row])
        gained = np.diff(hits[row, places], prepend=0)
        values.append(float((gained * precision[row, places]).sum() / total[row]))
    return np.array(values)


def _best_f1(found: Floats, wanted: Floats) -> Floats:
    hits, ends = _swept(found, wanted)
    f1 = 2 * hits / (np.arange(1, found.shape[1] + 1) + hits[:, -1:])
    return np.asarray(np.where(ends, f1, 0).max(axis=1))


def _best_accuracy(found: Floats, wanted: Floats) -> Floats:
    hits, ends = _swept(found, wanted)
    chosen = np.arange(1, found.shape[1] + 1)
    right = hits + (found.shape[1] - hits[:, -1:]) - (chosen - hits)
    none = (found.shape[1] - hits[:, -1]) / found.shape[1]  # a threshold above all
    return np.asarray(np.maximum(np.where(ends, right, 0).max(axis=1) / found.shape[1], none))
