"""Weights by gradient descent on the loss of the merged model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from bge_cocktail.core.errors import CocktailError, UsageError
from bge_cocktail.core.progress import progress
from bge_cocktail.data.record import positives_by_query
from bge_cocktail.merging.plan import source_of, tensor_of
from bge_cocktail.merging.tensors import Key, count_of
from bge_cocktail.merging.weights import Objective, WeightsResult, weightings
from bge_cocktail.models.layers import EMBEDDINGS, LAYER

if TYPE_CHECKING:
    import torch

    from bge_cocktail.merging.objective import EncoderObjective, Features

EXAMPLES_A_STEP = 16


@weightings("gradient", shared=True, data=("examples",))
def gradient(
    objective: Objective, _: Sequence[int], *, steps: int, rate: float, per_layer: bool, seed: int
) -> WeightsResult:
    """Descent on the loss of the merged model itself: dL/dw_i = <dL/dtheta, theta_i>, one backward pass for all."""
    return weights_by_gradient(
        _of_encoders(objective, "gradient"), steps=steps, rate=rate, per_layer=per_layer, scaled=False, seed=seed
    )


@weightings("self-positioning", shared=True, data=("examples",))
def self_positioning(objective: Objective, _: Sequence[int], *, steps: int, rate: float, seed: int) -> WeightsResult:
    """Descent on the direction and the length of the merged task vector (after arXiv:2410.15035); needs `base`."""
    return weights_by_gradient(
        _of_encoders(objective, "self-positioning"), steps=steps, rate=rate, per_layer=False, scaled=True, seed=seed
    )


def weights_by_gradient(
    objective: EncoderObjective, *, steps: int, rate: float, per_layer: bool, scaled: bool, seed: int
) -> WeightsResult:
    """Find weights, softmax of logits, by Adam on the contrastive loss of the merged model.

    The merged parameters are ``sum_i w_i theta_i``, so one backward pass gives ``dL/dw_i = <dL/dtheta, theta_i>`` for
    all models at once. All models are held in memory, on the device that computes.

    Args:
        objective: The models and the examples.
        steps: Of Adam.
        rate: Its learning rate.
        per_layer: Whether each layer has weights of its own.
        scaled: Whether the length of the merged task vector is found too, as in Self Positioning (arXiv:2410.15035).
        seed: Of the batches.

    Raises:
        UsageError: Another method than the one whose weights these are.
        CocktailError: The models don't fit in memory.
    """
    import torch
    from torch.func import functional_call

    wanted = "task-arithmetic" if scaled else "linear"
    if objective.plan.options.method != wanted:
        raise UsageError(f"weights '{objective.plan.options.weights}' are found for `method={wanted}`")
    examples = objective.needed_examples
    model = objective.model.eval()
    stacks, groups = _stacks(objective, per_layer, scaled)
    logits = torch.zeros((max(groups.values()) + 1, len(objective.names)), device=model.device, requires_grad=True)
    length = torch.zeros((), device=model.device, requires_grad=scaled)
    optimiser = torch.optim.Adam([logits, length] if scaled else [logits], lr=rate)
    names = objective.parameter_names
    shapes = {key: parameter.shape for key, parameter in objective.parameters.items()}
    generator = np.random.default_rng(seed)
    known = positives_by_query(examples)
    trials: list[dict[str, Any]] = []
    seen: list[tuple[float, np.ndarray, float]] = []
    order: list[int] = []
    with progress("gradient steps", steps) as advance:
        for step in range(steps):
            if len(order) < min(EXAMPLES_A_STEP, len(examples)):
                order += generator.permutation(len(examples)).tolist()
            batch = [examples[row] for row in order[:EXAMPLES_A_STEP]]
            del order[:EXAMPLES_A_STEP]
            weights = torch.softmax(logits, dim=1)
            merged = {
                names[key]: _merge(rows, weights[groups[key]], length, scaled).view(shapes[key])
                for key, rows in stacks.items()
            }

            def forward(features: Features, now: dict[str, torch.Tensor] = merged) -> torch.Tensor:
                output: torch.Tensor = functional_call(model, now, (features,))["sentence_embedding"]
                return output

            loss = objective.batch_loss(batch, known, forward)
            seen.append((float(loss.detach()), weights.detach().cpu().numpy(), float(length.detach().exp())))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            trials.append({"step": step, "loss": seen[-1][0]})
            advance(1)
    last = torch.softmax(logits.detach(), dim=1).cpu().numpy(), float(length.detach().exp())
    lowest = min(seen, key=lambda one: one[0])[1:]
    return _best(objective, [last, lowest], scaled, trials)


def _of_encoders(objective: Objective, weights: str) -> EncoderObjective:
    from bge_cocktail.merging.objective import EncoderObjective

    if not isinstance(objective, EncoderObjective):
        raise UsageError(
            f"weights '{weights}' are found for encoders; for classifiers take cocktail, relative, greedy or search"
        )
    return objective


def _stacks(
    objective: EncoderObjective, per_layer: bool, scaled: bool
) -> tuple[dict[Key, torch.Tensor], dict[Key, int]]:
    """The flattened tensors of all models (and the base, last), shape (models, values), and the group of each."""
    import torch

    plan = objective.plan
    keys = list(objective.parameters)
    sources = {
        key: [source_of(plan, row, key) for row in range(len(plan.checkpoints))]
        + ([tensor_of(plan.base, key)] if scaled and plan.base else [])
        for key in keys
    }
    needed = 4 * sum(count_of(tensor) for tensors in sources.values() for tensor in tensors)
    there = psutil.virtual_memory().total
    if needed > 0.8 * there:
        raise CocktailError(
            f"{len(plan.checkpoints)} models take {needed / 1e9:.1f} GB, the machine has {there / 1e9:.1f}; "
            "merge fewer, or find weights with `weights=search`, which holds one model"
        )
    stacks = {}
    for key in keys:
        rows = np.empty((len(sources[key]), count_of(sources[key][0])), np.float32)
        for row, source in enumerate(sources[key]):
            source.read(0, rows[row])
        stacks[key] = torch.from_numpy(rows).to(objective.model.device)
    layers = sorted({int(match[1]) for key in keys if (match := LAYER.search(key[1]))}) if per_layer else []
    groups = {}
    for key in keys:
        match = LAYER.search(key[1])
        groups[key] = layers.index(int(match[1])) if match and layers else 0 if EMBEDDINGS.search(key[1]) else -1
    last = max(len(layers) - 1, 0)
    return stacks, {key: last if group < 0 else group for key, group in groups.items()}


def _merge(rows: torch.Tensor, weights: torch.Tensor, length: torch.Tensor, scaled: bool) -> torch.Tensor:
    if not scaled:
        return weights @ rows
    base = rows[-1]
    return base + length.exp() * (weights @ rows[:-1] - base)


def _best(
    objective: EncoderObjective, reached: list[tuple[np.ndarray, float]], scaled: bool, trials: list[dict[str, Any]]
) -> WeightsResult:
    """Return the best of what was reached, or the uniform mean if that is no worse; judged on all examples."""
    count = len(objective.names)
    uniform = WeightsResult([1 / count] * count, trials=trials, note="no step led below the loss of the uniform mean")
    choices = [uniform]
    for weights, scale in reached:
        exact = weights.astype(np.float64)
        exact /= exact.sum(axis=1, keepdims=True)
        choices.append(
            WeightsResult(exact[0].tolist(), weights_for=_by_layer(objective, exact), scale=scale if scaled else None)
        )
    losses = [_loss_on_all(objective, choice) for choice in choices]
    best = int(np.argmin(losses))
    if best == 0:
        return uniform
    note = (
        f"loss on the examples in batches of {EXAMPLES_A_STEP}: {losses[0]:.4f} with uniform weights, "
        f"{losses[best]:.4f} with these" + ("; each layer has its own (run.json)" if choices[best].weights_for else "")
    )
    return replace(choices[best], trials=trials, note=note)


def _loss_on_all(objective: EncoderObjective, result: WeightsResult) -> float:
    """Return the loss that the steps lowered, on all examples."""
    import torch

    objective.placed(result)
    examples, model = objective.needed_examples, objective.model.eval()
    known = positives_by_query(examples)
    starts = range(0, len(examples), EXAMPLES_A_STEP)
    with torch.no_grad():
        losses = [
            objective.batch_loss(
                examples[start : start + EXAMPLES_A_STEP],
                known,
                lambda features: model(features)["sentence_embedding"],
            )
            for start in starts
        ]
    return float(torch.stack(losses).mean())


def _by_layer(objective: EncoderObjective, weights: np.ndarray) -> dict[str, list[float]]:
    """Patterns for the tensors of each layer; what comes after the last layer weighs as it does."""
    patterns: dict[str, list[float]] = {}
    if len(weights) == 1:
        return patterns
    layers = sorted({int(match[1]) for key in objective.parameters if (match := LAYER.search(key[1]))})
    for _, name in objective.parameters:
        match = LAYER.search(name)
        if match:
            patterns[f"{name[: match.end()]}*"] = weights[layers.index(int(match[1]))].tolist()
        elif not EMBEDDINGS.search(name):
            patterns[name] = weights[-1].tolist()
    return patterns
