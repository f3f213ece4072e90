"""A logistic regression on what the frozen encoder gives a head: where a head begins, and what it is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.data.labelled import LabelledTexts
from bge_cocktail.evaluating.tasks.labelled import STRENGTHS
from bge_cocktail.options import ClassifyOptions, PredictOptions
from bge_cocktail.training.classifier.data import ClassifierData
from bge_cocktail.training.classifier.evaluate import dev_metrics
from bge_cocktail.training.classifier.model import head_parameters
from bge_cocktail.training.classifier.predict import logits_of

if TYPE_CHECKING:
    import torch
    from sentence_transformers import CrossEncoder

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
# texts that it is fitted on at most, a seeded draw: more hardly move it, and each is embedded once
MOST_TEXTS = 20_000


def begin_with_probe(
    model: CrossEncoder, data: ClassifierData, options: ClassifyOptions, predicting: PredictOptions
) -> dict[str, Any]:
    """Fit a probe on the inputs of a head's last layer, and put it there (LP-FT, Kumar et al., arXiv:2202.10054).

    Tuning all weights under a head of random numbers distorts what the encoder knows before the head has learned
    anything; under a fitted one it begins where the probe ends.

    Args:
        model: The classifier, with a new head.
        data: Train, which it is fitted on, dev, which its strength is chosen on, and test.
        options: Class weights, several labels, the seed of the draw; `head_start` says whether the head begins with it.
        predicting: Device and precision.

    Returns:
        The strength C, and the metrics of the probe on dev and test.
    """
    import torch

    train = data.train
    if len(train) > MOST_TEXTS:
        rows = np.random.default_rng(options.seed).permutation(len(train))[:MOST_TEXTS]
        train = train.at(sorted(rows.tolist()))
    last = last_layer(model)
    with _without(model, last):
        known, dev, test = (
            logits_of(model, texts.texts, options.truncation, predicting, "probe")
            for texts in (train, data.dev, data.test or LabelledTexts())
        )
    strengths = STRENGTHS if len(data.dev) else STRENGTHS[2:3]
    intercept = last.bias is not None
    fitted = [fit_logistic(known, train, len(data.names), options, strength, intercept) for strength in strengths]
    judged = [dev_metrics(_logits(dev, *one), data.dev, options) if len(data.dev) else {} for one in fitted]
    best = max(range(len(judged)), key=lambda row: (judged[row].get(options.metric, 0), -judged[row].get("loss", 0)))
    weight, bias = fitted[best]
    if options.head_start == "probe":
        with torch.no_grad():
            last.weight.copy_(torch.from_numpy(weight))
            if intercept:
                last.bias.copy_(torch.from_numpy(bias))
    found: dict[str, Any] = {"strength": strengths[best], "dev": judged[best]}
    if data.test is not None and len(data.test):
        found["test"] = dev_metrics(_logits(test, weight, bias), data.test, options)
    return found


def fit_logistic(
    known: Floats,
    texts: LabelledTexts,
    classes: int,
    options: ClassifyOptions,
    strength: float = 1.0,
    intercept: bool = True,
) -> tuple[Floats, Floats]:
    """Return weights and biases of a logistic regression whose logits are those of a softmax, or of sigmoids.

    Args:
        known: Shape (texts, dimensions).
        texts: Their labels and weights.
        classes: How many there are; one without texts gets no weights and a bias that keeps it from being predicted.
        options: Class weights, and whether a text may have several labels.
        strength: scikit-learn's C.
        intercept: Whether there are biases.

    Returns:
        Shapes (classes, dimensions) and (classes,).
    """
    from sklearn.linear_model import LogisticRegression

    balanced = "balanced" if options.class_weights == "balanced" else None
    weight, bias = np.zeros((classes, known.shape[1])), np.full(classes, _NEVER)
    sample_weight = np.asarray(texts.weights)
    kept = sample_weight > 0

    def fit(truth: NDArray[Any]) -> Any:
        model = LogisticRegression(C=strength, max_iter=2000, class_weight=balanced, fit_intercept=intercept)
        return model.fit(known[kept], truth[kept], sample_weight=sample_weight[kept])

    if options.multi_label:
        for row, truth in enumerate(texts.targets(classes).T):
            if 0 < truth[kept].sum() < kept.sum():
                one = fit(truth)
                weight[row], bias[row] = one.coef_[0], one.intercept_[0]
            else:
                bias[row] = -_NEVER if truth[kept].any() else _NEVER
        return weight.astype(np.float32), bias.astype(np.float32)
    truth = texts.classes()
    there = np.unique(truth[kept])
    if len(there) == 1:
        bias[there] = 0
    elif len(there) == 2:  # one row tells both apart: half of it for, half against
        one = fit(truth)
        weight[there], bias[there] = np.outer([-0.5, 0.5], one.coef_[0]), np.array([-0.5, 0.5]) * one.intercept_
    else:
        every = fit(truth)
        weight[there], bias[there] = every.coef_, every.intercept_
    return weight.astype(np.float32), bias.astype(np.float32)


# the logit of a class that no text of train has
_NEVER = -10.0


def _logits(known: Floats, weight: Floats, bias: Floats) -> Floats:
    return np.asarray(known @ weight.T + bias, np.float32)


def last_layer(model: CrossEncoder) -> torch.nn.Linear:
    """Return the linear layer of a head that gives the logits."""
    import torch

    of_head = set(head_parameters(model))
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and f"{name}.weight" in of_head
    ]
    return layers[-1][1]


@contextmanager
def _without(model: CrossEncoder, layer: torch.nn.Linear) -> Iterator[None]:
    """Let a model give what comes into one of its layers, where it gives what comes out of it."""
    import torch

    name = next(name for name, module in model.named_modules() if module is layer)
    parent, _, attribute = name.rpartition(".")
    holder = model.get_submodule(parent)
    setattr(holder, attribute, torch.nn.Identity())
    try:
        yield
    finally:
        setattr(holder, attribute, layer)
