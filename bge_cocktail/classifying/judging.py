"""A classifier judged on labelled texts: scores with intervals, classes, calibration, and what it gets wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.classifying.analysis import confusions, likely_label_errors, mistakes, scores_by_length
from bge_cocktail.classifying.data import LabelledTexts
from bge_cocktail.classifying.metrics import accuracy, calibration_error, chosen, log_losses, macro_f1
from bge_cocktail.classifying.model import Classifier
from bge_cocktail.classifying.predicting import logits_of, probabilities
from bge_cocktail.classifying.settings import Settings
from bge_cocktail.options import Evaluating, Predicting
from bge_cocktail.statistics import bootstrap_interval

# of metrics that must be computed anew for every resample
RESAMPLES = 1000


def judge_classifier(
    classifier: Classifier,
    data: LabelledTexts,
    predicting: Predicting | None = None,
    evaluating: Evaluating | None = None,
) -> dict[str, Any]:
    """Judge a classifier.

    Args:
        classifier: From `load_classifier`.
        data: Cleaned texts, their labels numbered as the classifier's.
        predicting: Precision, temperature.
        evaluating: Confidence of the intervals, seed.

    Returns:
        See `judge_logits`.
    """
    predicting, evaluating = predicting or Predicting(), evaluating or Evaluating()
    settings = classifier.settings
    logits = logits_of(classifier.model, data.texts, settings.truncation, predicting)
    return judge_logits(logits, data, settings, evaluating, settings.temperature if predicting.calibrated else 1.0)


def judge_logits(
    logits: NDArray[np.float32], data: LabelledTexts, settings: Settings, options: Evaluating, temperature: float = 1.0
) -> dict[str, Any]:
    """Judge logits.

    Args:
        logits: Shape (texts, classes).
        data: The texts and their labels.
        settings: Names of the labels, and whether a text may have several.
        options: Confidence of the intervals, seed.
        temperature: Divides the logits where probabilities are judged.

    Returns:
        ``scores`` (metric, value, interval; ``positive``: the label that AUC and AP rank for), ``classes`` (a row for
        each), ``confusion`` (rows are the truth; not where a text may have several labels), and ``mistakes``,
        ``confusions``, ``lengths``, ``label_errors``.
    """
    truth = data.targets(len(settings.labels)).astype(bool)
    found = probabilities(logits, settings, temperature).astype(np.float64)
    guessed = chosen(logits.astype(np.float64), settings.multi_label, settings.threshold)
    several = settings.multi_label
    judged: dict[str, Any] = {
        "count": len(data),
        "scores": _scores(logits, found, truth, guessed, settings, options, temperature),
        "classes": _classes(truth, guessed, settings.labels),
        "mistakes": mistakes(data, found, guessed, settings.labels),
        "lengths": scores_by_length(data.texts, (truth == guessed).all(axis=1)),
    }
    if not several:
        matrix = truth.T.astype(int) @ guessed.astype(int)
        judged["confusion"] = matrix.tolist()
        judged["confusions"] = confusions(matrix, settings.labels)
        judged["label_errors"] = likely_label_errors(data, found, settings.labels)
    return judged


def _scores(
    logits: NDArray[np.float32],
    found: NDArray[np.float64],
    truth: NDArray[np.bool_],
    guessed: NDArray[np.bool_],
    settings: Settings,
    options: Evaluating,
    temperature: float,
) -> list[dict[str, Any]]:
    rows = np.arange(len(truth), dtype=np.float64)

    def score(name: str, of: Callable[[Any], float], *, grows: bool = False) -> dict[str, Any]:
        """A metric of some rows, with an interval over resamples of them; `grows`: resampling raises it by itself."""
        values: list[float] = []

        def statistic(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
            found = np.array([of(one.astype(int)) for one in drawn])
            values.extend(found.tolist())
            return found

        low, high = bootstrap_interval(
            rows, confidence=options.confidence, seed=options.seed, resamples=RESAMPLES, statistic=statistic
        )
        value = of(np.arange(len(truth)))
        excess = np.nanmean(values) - value if grows else 0.0
        return {"metric": name, "value": value, "interval": (max(low - excess, 0.0), high - excess)}

    losses = log_losses(logits, truth, settings.multi_label, temperature)
    sure, right = _sureness(found, truth, guessed, settings.multi_label)
    scores = [
        score("accuracy", lambda rows: accuracy(truth[rows], guessed[rows])),
        score("macro-F1", lambda rows: macro_f1(truth[rows], guessed[rows])),
        score("log-loss", lambda rows: float(losses[rows].mean())),
        score(
            "calibration error",
            lambda rows: calibration_error(sure[rows].ravel().astype(np.float32), right[rows].ravel()),
            grows=True,  # a text that is drawn twice looks like evidence
        ),
    ]
    # of one class alone, there is nothing to rank
    if len(settings.labels) == 2 and not settings.multi_label and truth.any(axis=0).all():
        positive, likely = truth[:, 1], found[:, 1]
        scores += [
            score(name, _ranking(positive, likely, name)) | {"positive": settings.labels[1]} for name in ("AUC", "AP")
        ]
    return scores


def _sureness(
    found: NDArray[np.float64], truth: NDArray[np.bool_], guessed: NDArray[np.bool_], several: bool
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Probability and rightness of what is predicted: of each text's label, or of each label that a text may have.

    Returns:
        Both of shape (texts, 1), or (texts, classes).
    """
    if several:
        return np.maximum(found, 1 - found), ~(truth ^ guessed)
    right = np.asarray((truth & guessed).any(axis=1, keepdims=True), dtype=np.bool_)
    return found.max(axis=1, keepdims=True), right


def _ranking(positive: NDArray[np.bool_], likely: NDArray[np.float64], which: str) -> Callable[[Any], float]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    metric = roc_auc_score if which == "AUC" else average_precision_score

    def of(rows: Any) -> float:
        # a resample that holds one class only says nothing
        return float(metric(positive[rows], likely[rows])) if len(set(positive[rows].tolist())) == 2 else math.nan

    return of


def _classes(
    truth: NDArray[np.bool_], guessed: NDArray[np.bool_], labels: Sequence[str]
) -> list[dict[str, float | str | int]]:
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(truth, guessed, average=None, zero_division=0)
    names = ("precision", "recall", "F1")
    return [
        {
            "label": label,
            **{name: float(column[number]) for name, column in zip(names, columns, strict=False)},
            "count": int(truth[:, number].sum()),
        }
        for number, label in enumerate(labels)
    ]
