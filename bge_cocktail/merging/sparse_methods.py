"""The merge methods that keep a part of each task vector: TIES and DARE."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bge_cocktail.merging.methods import merge_methods
from bge_cocktail.merging.stack import TILE, Doubles, Stack
from bge_cocktail.merging.tensors import Floats

# float32 magnitudes are ordered as the integers of their bits; the upper half of those makes the first histogram
HALF = 1 << 16
Trim = Callable[[int, Doubles], None]
"""Zeroes what isn't kept of the task vectors of a tile, shape (models, values), in place; gets the tile's number."""


@merge_methods("ties", base=True)
def ties(stack: Stack, *, density: float, scale: float, normalise: bool) -> Iterator[Floats]:
    """Task vectors trimmed to their largest numbers, then merged where signs agree (arXiv:2306.01708).

    Of each task vector the `density` largest numbers are kept, tensor by tensor. Each position takes the sign of the
    weighted sum there; the weighted mean of the numbers of that sign (the sum with --no-normalise), times `scale`, is
    added to the base.
    """
    limits = _magnitudes(stack, density)

    def trim(_: int, vectors: Doubles) -> None:
        for vector, limit in zip(vectors, limits, strict=True):
            if limit > 0:
                vector *= np.abs(vector.astype(np.float32)) >= limit

    return _by_sign(stack, trim, scale, normalise)


@merge_methods("dare-linear", base=True, normalises=False)
def dare_linear(stack: Stack, *, density: float, scale: float, seed: int) -> Iterator[Floats]:
    """Task vectors with numbers dropped at random and the rest scaled up, added to the base (arXiv:2311.03099).

    Each number is kept with probability `density` and divided by it, so that the mean stays;
    ``base + scale * sum_i w_i vector_i``. A weight of 1 each unless given.
    """
    trim = _random_trim(stack, density, seed)
    for number, (base, vectors) in enumerate(_task_vectors(stack)):
        trim(number, vectors)
        yield _added(base, scale * (stack.weights @ vectors))


@merge_methods("dare-ties", base=True, normalises=False)
def dare_ties(stack: Stack, *, density: float, scale: float, normalise: bool, seed: int) -> Iterator[Floats]:
    """Task vectors with numbers dropped at random, then merged where signs agree (arXiv:2311.03099, 2306.01708).

    As dare-linear, but each position takes only the numbers that have the sign of the weighted sum there.
    """
    return _by_sign(stack, _random_trim(stack, density, seed), scale, normalise)


def _task_vectors(stack: Stack) -> Iterator[tuple[Doubles, Doubles]]:
    """Tiles of the base, shape (values,), and of the task vectors, shape (models, values).

    In float64, where the difference of two float32 numbers is exact: a task vector put back gives its model.
    """
    for tile in stack.tiles(base=True):
        wide = tile.astype(np.float64)
        wide[:-1] -= wide[-1]
        yield wide[-1], wide[:-1]


def _by_sign(stack: Stack, trim: Trim, scale: float, normalise: bool) -> Iterator[Floats]:
    weights = stack.weights
    for number, (base, vectors) in enumerate(_task_vectors(stack)):
        trim(number, vectors)
        vectors *= weights[:, None]
        positive = vectors.sum(axis=0) >= 0
        agree = np.where(positive, vectors > 0, vectors < 0)
        merged = np.einsum("kn,kn->n", vectors, agree)
        if normalise:
            shares = np.abs(weights) @ agree
            merged /= np.where(shares > 0, shares, 1)
        yield _added(base, scale * merged)


def _added(base: Doubles, change: Doubles) -> Floats:
    """The base with a change; where there is none it stays bit for bit, signed zeros too."""
    return np.where(change == 0, base, base + change).astype(np.float32)


def _random_trim(stack: Stack, density: float, seed: int) -> Trim:
    # numbers are drawn as 16 bits, so the density is kept to 1/65536 and the mean is kept exactly
    limit = max(1, round(density * HALF))

    def trim(number: int, vectors: Doubles) -> None:
        if limit >= HALF:
            return
        for model, vector in enumerate(vectors):
            generator = stack.random(model, seed, number)
            drawn = np.frombuffer(generator.bytes(2 * len(vector)), "<u2")
            vector *= drawn < limit
        vectors *= HALF / limit

    return trim


def _magnitudes(stack: Stack, density: float) -> list[np.float32]:
    """The magnitude of each task vector that `density` of its numbers reach; exact, without sorting.

    Large tensors are never held: the bits of the magnitude are found 16 at a time from two histograms.
    """
    # a tensor of few numbers keeps one, so that tuning isn't undone there
    keep = max(1, int(density * stack.count))
    models = len(stack.models)
    if keep >= stack.count:
        return [np.float32(0)] * models
    if stack.count <= TILE:
        tile = next(stack.tiles(base=True))
        vectors = np.abs(tile[:-1] - tile[-1])
        return list(np.partition(vectors, stack.count - keep, axis=1)[:, stack.count - keep])
    upper = np.zeros((models, HALF), np.int64)
    for bits in _bits(stack):
        for model, row in enumerate(bits):
            upper[model] += np.bincount(row >> 16, minlength=HALF)
    bins, left = zip(*(_nth_from_above(counts, keep) for counts in upper), strict=True)
    lower = np.zeros((models, HALF), np.int64)
    for bits in _bits(stack):
        for model, row in enumerate(bits):
            inside = row[(row >> 16) == bins[model]]
            lower[model] += np.bincount(inside & (HALF - 1), minlength=HALF)
    found = [(bins[model] << 16) | _nth_from_above(lower[model], left[model])[0] for model in range(models)]
    return list(np.asarray(found, np.uint32).view(np.float32))


def _bits(stack: Stack) -> Iterator[np.ndarray]:
    for tile in stack.tiles(base=True):
        vectors = tile[:-1]
        np.subtract(vectors, tile[-1], out=vectors)
        np.abs(vectors, out=vectors)
        yield vectors.view(np.uint32)


def _nth_from_above(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """The bin that holds the wanted-th largest number, and its place from above within the bin."""
    reached = np.cumsum(counts[::-1])
    place = int(np.searchsorted(reached, wanted))
    before = int(reached[place - 1]) if place else 0
    return len(counts) - 1 - place, wanted - before
