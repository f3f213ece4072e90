"""Merge methods for models of different tasks: they keep what each task vector does in directions of its own.

All of them work on the matrices of layers as a whole, in float64; embeddings and what is no matrix are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from bge_cocktail.merging.methods import Doubles, Stack, merge_methods
from bge_cocktail.merging.tensors import Floats
from bge_cocktail.models.layers import EMBEDDINGS

# part of the largest singular value, or eigenvalue, below which a direction is rounding
NOTHING = 1e-10
# Iso-CTS: part of the directions that all tasks share (the paper's choice)
COMMON = 0.8
# Adam of WUDI's reference
RATE, BETAS, TINY = 1e-5, (0.9, 0.999), 1e-8


@merge_methods("iso-c", base=True, weighted=False, for_tasks=True, equal_stays=False)
def iso_c(stack: Stack, *, scale: float) -> Iterator[Floats]:
    """The sum of task vectors with all its singular values made equal (Iso-C, arXiv:2502.04959).

    ``base + scale * mean(S) U V'`` with ``U S V' = svd(sum_i (x_i - base))``: no task's directions outweigh another's.
    """
    return _by_matrix(stack, scale, lambda changes: _isotropic(*_svd(np.sum(changes, axis=0))))


@merge_methods("iso-cts", base=True, weighted=False, for_tasks=True, equal_stays=False)
def iso_cts(stack: Stack, *, scale: float) -> Iterator[Floats]:
    """As iso-c, but a fifth of the directions are each task's own (Iso-CTS, arXiv:2502.04959).

    The first 0.8 r left singular vectors of the sum are kept; of what each task vector does outside of them, the first
    (0.2 r) / N. Both sides are made orthogonal, and all singular values are their mean.
    """

    def merged(changes: Sequence[Doubles]) -> Doubles:
        left, values, right = _svd(np.sum(changes, axis=0))
        rank = min(changes[0].shape)
        own = (rank - int(COMMON * rank)) // len(changes)
        shared = rank - own * len(changes)
        lefts, all_values, rights = [left[:, :shared]], [values[:shared]], [right[:shared]]
        for change in changes:
            first, strengths, second = _svd(change - lefts[0] @ (lefts[0].T @ change))
            lefts.append(first[:, :own])
            all_values.append(strengths[:own])
            rights.append(second[:own])
        return _isotropic(_orthogonal(np.hstack(lefts)), np.concatenate(all_values), _orthogonal(np.vstack(rights)))

    return _by_matrix(stack, scale, merged)


@merge_methods("tsv-m", base=True, weighted=False, for_tasks=True, equal_stays=False)
def tsv_m(stack: Stack, *, scale: float) -> Iterator[Floats]:
    """The first singular vectors of each task vector, made orthogonal to those of the others (arXiv:2412.00081).

    Of each of N task vectors the first r / N singular triples; left and right vectors of all are replaced by the
    nearest orthogonal ones.
    """

    def merged(changes: Sequence[Doubles]) -> Doubles:
        own = max(1, min(changes[0].shape) // len(changes))
        parts = [_svd(change) for change in changes]
        left = _orthogonal(np.hstack([part[0][:, :own] for part in parts]))
        right = _orthogonal(np.vstack([part[2][:own] for part in parts]))
        return np.asarray((left * np.concatenate([part[1][:own] for part in parts])) @ right)

    return _by_matrix(stack, scale, merged)


@merge_methods("wudi", base=True, weighted=False, for_tasks=True, equal_stays=False)  # but for rounding, it would
def wudi(stack: Stack, *, scale: float, wudi_steps: int) -> Iterator[Floats]:
    """The change that interferes least with each task vector, on inputs in its own span (WUDI, arXiv:2503.08099).

    The D with the least ``sum_i |(D - D_i) D_i'|² / |D_i|²``. Setting its gradient to zero gives ``D = (sum_i D_i G_i)
    (sum_i G_i)+`` with ``G_i = D_i' D_i / |D_i|²``. With `wudi_steps` it is sought as the paper's reference does, by
    Adam from the sum of the task vectors.
    """
    return _by_matrix(stack, scale, lambda changes: _descended(changes, wudi_steps) if wudi_steps else _solved(changes))


def _by_matrix(stack: Stack, scale: float, merged: Callable[[Sequence[Doubles]], Doubles]) -> Iterator[Floats]:
    """Return the base with the merged change of a matrix; what is none is averaged."""
    count = len(stack.models)
    if len(stack.shape) != 2 or EMBEDDINGS.search(stack.name) or stack.base is None:
        return stack.combine([scale / count] * count, base=1 - scale)
    base = stack.whole(stack.base).astype(np.float64)
    changes = [stack.whole(tensor).astype(np.float64) - base for tensor in stack.models]
    if not all(np.isfinite(change).all() for change in changes):
        raise FloatingPointError(stack.name)
    moved = [change for change in changes if change.any()]
    change = scale * merged(moved) if moved else np.zeros_like(base)
    return iter([np.where(change == 0, base, base + change).astype(np.float32).reshape(-1)])


def _svd(matrix: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Return singular vectors and values that are no rounding: U, shape (rows, k), S, and V', shape (k, columns)."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    kept = values > NOTHING * values[0] if values[0] > 0 else np.zeros(len(values), bool)
    return left[:, kept], values[kept], right[kept]


def _isotropic(left: Doubles, values: Doubles, right: Doubles) -> Doubles:
    return np.asarray((values.mean() if len(values) else 0.0) * (left @ right))


def _orthogonal(matrix: Doubles) -> Doubles:
    """Return the nearest matrix with orthonormal columns, or rows (the polar factor)."""
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray(left @ right)


def _grams(changes: Sequence[Doubles]) -> list[Doubles]:
    return [change.T @ change / np.square(change).sum() for change in changes]


def _solved(changes: Sequence[Doubles]) -> Doubles:
    grams = _grams(changes)
    moved = sum(change @ gram for change, gram in zip(changes, grams, strict=True))
    return np.asarray(moved @ np.linalg.pinv(sum(grams), rcond=NOTHING, hermitian=True))


def _descended(changes: Sequence[Doubles], steps: int) -> Doubles:
    grams = _grams(changes)
    total = sum(grams)
    pull = sum(change @ gram for change, gram in zip(changes, grams, strict=True))
    merged: Doubles = np.sum(changes, axis=0)
    mean, square = np.zeros_like(merged), np.zeros_like(merged)
    for step in range(1, steps + 1):
        slope = 2 * (merged @ total - pull)
        mean = BETAS[0] * mean + (1 - BETAS[0]) * slope
        square = BETAS[1] * square + (1 - BETAS[1]) * slope**2
        merged -= RATE * (mean / (1 - BETAS[0] ** step)) / (np.sqrt(square / (1 - BETAS[1] ** step)) + TINY)
    return merged
