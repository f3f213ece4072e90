"""The merge methods: from the same values of each model to merged values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.registry import Registry

Floats = NDArray[np.float32]
MergeMethod = Callable[[Floats, NDArray[np.float64]], Floats]
merge_methods = Registry[MergeMethod]("merge-methods")


@merge_methods("linear")
def linear(tensors: Floats, weights: NDArray[np.float64]) -> Floats:
    """Weighted mean of the same tensor of each model (Model soups, arXiv:2203.05482).

    Computed as ``x_0 - sum_i w_i (x_0 - x_i)``, which is the weighted mean because the weights sum to 1. In this
    form equal models merge to themselves bit for bit (signed zeros too), and models that differ little lose
    nothing to rounding.

    Args:
        tensors: Shape (models, values); overwritten.
        weights: Shape (models,), of sum 1.

    Returns:
        Shape (values,).
    """
    first = tensors[0]
    moved: Floats = np.zeros_like(first)
    for other, weight in zip(tensors[1:], weights[1:], strict=True):
        np.subtract(first, other, out=other)
        other *= np.float32(weight)
        moved += other
    np.subtract(first, moved, out=moved)
    return moved
