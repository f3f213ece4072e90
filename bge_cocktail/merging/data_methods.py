"""The merge methods that look at what the models do with examples: Fisher and RegMean."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bge_cocktail.merging.methods import merge_methods
from bge_cocktail.merging.stack import Stack
from bge_cocktail.merging.tensors import Floats

RIDGE = 1e-6


@merge_methods("fisher", data="fisher", normalises="always")
def fisher(stack: Stack) -> Iterator[Floats]:
    """Mean weighted, number by number, by how much the loss depends on it (arXiv:2111.09832).

    ``sum_i w_i F_i x_i / sum_i w_i F_i`` with F_i the mean squared gradient of the contrastive loss of model i on the
    examples (the diagonal of the Fisher information). Where it is 0 in all models, the weights alone decide.
    """
    count = len(stack.models)
    if not stack.statistics:
        yield from stack.combine(stack.weights)
        return
    for tile in stack.read([*stack.models, *stack.statistics]):
        values, weights = tile[:count], tile[count:].astype(np.float64) * stack.weights[:, None]
        total = weights.sum(axis=0)
        weights = np.where(total > 0, weights / np.where(total > 0, total, 1), stack.weights[:, None])
        # differences, so that equal models stay what they are
        moved = ((values[0] - values[1:]) * weights[1:]).sum(axis=0)
        yield (values[0] - moved).astype(np.float32)


@merge_methods("regmean", data="regmean", normalises="always")
def regmean(stack: Stack, *, shrinkage: float) -> Iterator[Floats]:
    """The matrix whose outputs are nearest to those of each model, on inputs from the examples (arXiv:2212.09849).

    For a linear layer with weights W_i, shape (outputs, inputs), and G_i the inner products of its inputs:
    ``(sum_i w_i W_i G_i) (sum_i w_i G_i)^-1``; what G_i has off its diagonal is multiplied by `shrinkage`. Other
    tensors are averaged. Holds whole matrices in memory.
    """
    if not stack.statistics:
        yield from stack.combine(stack.weights)
        return
    first = stack.whole(stack.models[0]).astype(np.float64)
    total = np.zeros((first.shape[1], first.shape[1]))
    moved = np.zeros_like(first)
    for tensor, inputs, weight in zip(stack.models, stack.statistics, stack.weights, strict=True):
        gram = stack.whole(inputs).astype(np.float64)
        gram = weight * (shrinkage * gram + (1 - shrinkage) * np.diag(np.diag(gram)))
        total += gram
        moved += (first - stack.whole(tensor)) @ gram
    # inputs that never vary leave directions without evidence; there the models are averaged by a hair
    total += RIDGE * max(np.trace(total) / len(total), 1e-12) * np.eye(len(total))
    yield (first - np.linalg.solve(total, moved.T).T).astype(np.float32).reshape(-1)
