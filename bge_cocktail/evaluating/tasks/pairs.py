"""Pairs of texts: similarity against scores (STS), and telling pairs that belong together from others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import DataError
from bge_cocktail.data.labelled import SCORED, DataFolder, ScoredPairs, is_scored_by_label, read_scored
from bge_cocktail.data.record_files import spread
from bge_cocktail.evaluating.scores import Score
from bge_cocktail.evaluating.tasks.task import Task, TaskKind, interval_of, rows_of_texts, tasks
from bge_cocktail.models.encoder import Encoder
from bge_cocktail.options import EvaluateOptions

Floats = NDArray[np.float64]
# correlations of resamples are computed one by one; so many tell the interval to its third digit
RESAMPLES = 1000
# cosines that differ by less do so by rounding
SAME = 1e-6


class ScoredKind(TaskKind):
    """Pairs of texts with a score; what STS and pair classification have in common."""

    def read(self, folder: DataFolder, split: str) -> ScoredPairs:
        """See `TaskKind.read`."""
        return read_scored(folder, split)

    def limited(self, data: ScoredPairs, limit: int) -> ScoredPairs:
        """See `TaskKind.limited`."""
        first, second, scores = spread(data.first, limit), spread(data.second, limit), spread(data.scores, limit)
        return ScoredPairs(tuple(first), tuple(second), tuple(scores))

    def texts(self, data: ScoredPairs, split: str, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the pairs and their scores."""
        return rows_of_texts(list(zip(data.first, data.second, strict=True)), data.scores, split)


class SemanticSimilarity(ScoredKind):
    """Cosine of pairs of texts against their scores: Spearman's and Pearson's correlation."""

    order = 21
    mteb = ("STS", "cosine_spearman")

    def recognises(self, folder: DataFolder) -> bool:
        """Return whether rows hold two sentences and a score, or a number as label that no probe can learn."""
        return not folder.holds("corpus.jsonl") and (
            folder.first_row().keys() >= SCORED or ("train" not in folder.splits and is_scored_by_label(folder))
        )

    def judge(self, encoder: Encoder, task: Task, options: EvaluateOptions) -> list[Score]:
        """See `TaskKind.judge`."""
        from scipy.stats import pearsonr, spearmanr

        pairs: ScoredPairs = task.data(options.split)
        similarities, truth = cosines(encoder, pairs), np.array(pairs.scores)
        if np.ptp(similarities) < SAME:
            raise DataError(f"{task.name}: the model gives all pairs the same similarity")
        return [
            task.score(
                "Spearman",
                float(spearmanr(similarities, truth).statistic),
                _interval(similarities, truth, options, rank_correlations),
                len(truth),
                main=True,
                answers=_answers(similarities, options.split),
            ),
            task.score(
                "Pearson",
                float(pearsonr(similarities, truth).statistic),
                _interval(similarities, truth, options, _correlations),
                len(truth),
            ),
        ]

    def to_mteb(self, task: Task, split: str, made: Any) -> None:
        """See `TaskKind.to_mteb`."""
        from datasets import Dataset, DatasetDict

        pairs: ScoredPairs = task.data(split)
        columns = {"sentence1": list(pairs.first), "sentence2": list(pairs.second), "score": list(pairs.scores)}
        made.dataset = {"default": DatasetDict({split: Dataset.from_dict(columns)})}
        made.min_score, made.max_score = min(pairs.scores), max(pairs.scores)


class PairClassification(ScoredKind):
    """Cosine of pairs that belong together or don't (score 1 or 0): average precision, the best F1 and accuracy."""

    order = 20
    mteb = ("PairClassification", "cosine_ap")

    def recognises(self, folder: DataFolder) -> bool:
        """Return whether rows hold two sentences and a score of 0 or 1."""
        split = folder.any_split
        return bool(split) and _STS.recognises(folder) and read_scored(folder, str(split)).binary

    def read(self, folder: DataFolder, split: str) -> ScoredPairs:
        """See `TaskKind.read`."""
        pairs = read_scored(folder, split)
        check_binary(pairs, folder.path.resolve().name, split)
        return pairs

    def judge(self, encoder: Encoder, task: Task, options: EvaluateOptions) -> list[Score]:
        """See `TaskKind.judge`."""
        pairs: ScoredPairs = task.data(options.split)
        similarities, truth = cosines(encoder, pairs), np.array(pairs.scores)
        return [
            task.score(
                metric,
                float(of(similarities[None], truth[None])[0]),
                _interval(similarities, truth, options, of),
                len(truth),
                main=metric == "AP",
                answers=_answers(similarities, options.split) if metric == "AP" else {},
            )
            for metric, of in (("AP", average_precision), ("best F1", _best_f1), ("best accuracy", _best_accuracy))
        ]

    def to_mteb(self, task: Task, split: str, made: Any) -> None:
        """See `TaskKind.to_mteb`."""
        from datasets import Dataset, DatasetDict

        pairs: ScoredPairs = task.data(split)
        labels = [int(score) for score in pairs.scores]
        columns = {"sentence1": list(pairs.first), "sentence2": list(pairs.second), "labels": labels}
        made.dataset = {"default": DatasetDict({split: Dataset.from_dict(columns)})}


_STS = SemanticSimilarity()
tasks("sts")(_STS)
tasks("pair-classification")(PairClassification())


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


def _answers(similarities: Floats, split: str) -> dict[str, float]:
    return {f"{split}:{line}": round(one, 6) for line, one in enumerate(similarities.tolist(), start=1)}


def _interval(
    similarities: Floats, wanted: Floats, options: EvaluateOptions, of: Callable[[Floats, Floats], Floats]
) -> tuple[float, float]:
    both = np.stack([similarities, wanted], axis=1)

    def statistic(drawn: Floats) -> Any:
        return of(drawn[..., 0], drawn[..., 1])

    return interval_of(options)(both, resamples=RESAMPLES, statistic=statistic)


def rank_correlations(similarities: Floats, wanted: Floats) -> Floats:
    """Spearman's correlation of each row, shape (samples,): of ranks within the row, equal ones sharing theirs."""
    from scipy.stats import rankdata

    return _correlations(rankdata(similarities, axis=1), rankdata(wanted, axis=1))


def _correlations(similarities: Floats, wanted: Floats) -> Floats:
    """Pearson's correlation of each row, shape (samples,)."""
    one, other = (values - values.mean(axis=1, keepdims=True) for values in (similarities, wanted))
    lengths = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return np.asarray((one * other).sum(axis=1) / np.maximum(lengths, 1e-30))


def _swept(similarities: Floats, wanted: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """How many pairs belong together down to each place in the order of similarity; and where a threshold can be."""
    order = np.argsort(-similarities, axis=1, kind="stable")
    sorted_found = np.take_along_axis(similarities, order, 1)
    hits = np.cumsum(np.take_along_axis(wanted, order, 1), axis=1)
    # equal similarities are on the same side of any threshold
    ends = np.concatenate([sorted_found[:, 1:] != sorted_found[:, :-1], np.ones((len(similarities), 1), bool)], axis=1)
    return hits, ends


def average_precision(similarities: Floats, wanted: Floats) -> Floats:
    """Average precision of each row, shape (samples,); equal similarities are told apart by no threshold."""
    hits, ends = _swept(similarities, wanted)
    precision = hits / np.arange(1, similarities.shape[1] + 1)
    total = np.maximum(hits[:, -1], 1)
    values = []
    for row in range(len(similarities)):
        places = np.flatnonzero(ends[row])
        gained = np.diff(hits[row, places], prepend=0)
        values.append(float((gained * precision[row, places]).sum() / total[row]))
    return np.array(values)


def _best_f1(similarities: Floats, wanted: Floats) -> Floats:
    hits, ends = _swept(similarities, wanted)
    f1 = 2 * hits / (np.arange(1, similarities.shape[1] + 1) + hits[:, -1:])
    return np.asarray(np.where(ends, f1, 0).max(axis=1))


def _best_accuracy(similarities: Floats, wanted: Floats) -> Floats:
    hits, ends = _swept(similarities, wanted)
    chosen = np.arange(1, similarities.shape[1] + 1)
    right = hits + (similarities.shape[1] - hits[:, -1:]) - (chosen - hits)
    none = (similarities.shape[1] - hits[:, -1]) / similarities.shape[1]  # a threshold above all
    return np.asarray(np.maximum(np.where(ends, right, 0).max(axis=1) / similarities.shape[1], none))
