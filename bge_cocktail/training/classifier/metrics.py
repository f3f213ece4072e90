"""How good predictions are: right labels, ranking, calibration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.data.labelled import LabelledTexts
from bge_cocktail.evaluating.measures import macro_f1
from bge_cocktail.options import ClassifyOptions

Floats = NDArray[np.float64]
BINS = 15


def dev_metrics(logits: NDArray[np.float32], data: LabelledTexts, options: ClassifyOptions) -> dict[str, float]:
    """What is watched while a classifier is tuned.

    Args:
        logits: Shape (texts, classes).
        data: The texts' labels.
        options: Whether a text may have several, and from which probability one counts.

    Returns:
        accuracy (of several labels: the share of texts with exactly the right ones), macro-F1, and the loss,
        cross-entropy without weights or smoothing.
    """
    truth = data.targets(logits.shape[1]).astype(bool)
    loss = float(np.mean(log_losses(logits, truth, options.multi_label)))
    guessed = chosen(logits.astype(np.float64), options.multi_label, options.threshold)
    return {"accuracy": accuracy(truth, guessed), "macro-F1": f1_of_classes(truth, guessed), "loss": loss}


def chosen(logits: Floats, multi_label: bool, threshold: float = 0.5) -> NDArray[np.bool_]:
    """What is predicted: the likeliest class, or all labels whose probability reaches the threshold.

    Returns:
        True for predicted labels, shape (texts, classes).
    """
    if multi_label:
        found: NDArray[np.bool_] = logits >= np.log(threshold / (1 - threshold))
        return found
    found = np.zeros(logits.shape, bool)
    found[np.arange(len(logits)), logits.argmax(axis=1)] = True
    return found


def accuracy(truth: NDArray[np.bool_], guessed: NDArray[np.bool_]) -> float:
    """Share of the texts whose labels are all right."""
    return float((truth == guessed).all(axis=1).mean())


def f1_of_classes(truth: NDArray[np.bool_], guessed: NDArray[np.bool_]) -> float:
    """Return macro-F1 (see `measures.macro_f1`) of true and predicted labels, shapes (texts, classes)."""
    return float(macro_f1((truth & guessed).sum(axis=0), truth.sum(axis=0) + guessed.sum(axis=0)))


def log_losses(
    logits: NDArray[np.float32], truth: NDArray[np.bool_], multi_label: bool, temperature: float = 1.0
) -> Floats:
    """Cross-entropy of each text, of several labels the mean over them, shape (texts,)."""
    from scipy.special import log_expit, log_softmax

    scaled = logits.astype(np.float64) / temperature
    if multi_label:
        return np.asarray(-np.where(truth, log_expit(scaled), log_expit(-scaled)).mean(axis=1))
    return np.asarray(-log_softmax(scaled, axis=1)[truth])


def calibration_temperature(logits: NDArray[np.float32], data: LabelledTexts, multi_label: bool) -> float:
    """The temperature with the least cross-entropy on dev (Guo et al., arXiv:1706.04599).

    Args:
        logits: Shape (texts, classes).
        data: The texts' labels.
        multi_label: Whether a text may have several.
    """
    from scipy.optimize import minimize_scalar

    truth = data.targets(logits.shape[1]).astype(bool)

    def loss(exponent: float) -> float:
        return float(log_losses(logits, truth, multi_label, float(np.exp(exponent))).mean())

    # within e^-6 and e^6: beyond, dev is too small or too easy to say
    return float(np.exp(minimize_scalar(loss, bounds=(-6, 6), method="bounded").x))


def calibration_error(probabilities: NDArray[np.float32], right: NDArray[np.bool_]) -> float:
    """Expected calibration error: how far confidence is from accuracy, over 15 bins of confidence (arXiv:1706.04599).

    Args:
        probabilities: Of the predicted labels, shape (predictions,).
        right: Whether each is right, shape (predictions,).
    """
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    gaps = np.abs(np.bincount(bins, right, BINS) - np.bincount(bins, probabilities.astype(np.float64), BINS))
    return float(gaps.sum() / max(counts.sum(), 1))
