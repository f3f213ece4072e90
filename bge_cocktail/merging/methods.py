"""Merge methods: what they work on, and those that are sums of whole tensors or keep a part of each task vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash
from numpy.typing import NDArray

from bge_cocktail.core.registry import Registry
from bge_cocktail.merging.tensors import Floats, Tensor, count_of

Doubles = NDArray[np.float64]
TILE = 1 << 16
# coefficients below this are rounding of a sum that is 0, or 1
NOTHING = 1e-9


@dataclass(frozen=True)
class Stack:
    """One tensor of all models, read tile by tile as often as a method asks.

    Attributes:
        name: The tensor's name.
        shape: Its shape.
        models: The tensor of each model.
        weights: The weight of each model, shape (models,).
        seeds: A number for each model that doesn't depend on their order.
        base: The base's tensor, for methods that need it.
        statistics: The data-driven numbers of the tensor for each model, for methods that need them.
        densities: The part of each task vector that is kept, where it isn't the method's `density` for all of them.
    """

    name: str
    shape: tuple[int, ...]
    models: Sequence[Tensor]
    weights: Doubles
    seeds: Sequence[int]
    base: Tensor | None = None
    statistics: Sequence[Tensor] = ()
    densities: Sequence[float] = ()
    buffers: dict[int, Floats] = field(default_factory=dict, repr=False)

    @property
    def count(self) -> int:
        """How many numbers the tensor has."""
        return count_of(self.models[0])

    def tiles(self, *, base: bool = False, rows: Sequence[int] | None = None) -> Iterator[Floats]:
        """Tiles of the tensor.

        Args:
            base: Whether the base comes as one more row, the last.
            rows: The models to read; all without it.

        Yields:
            Shape (models, values), float32; may be overwritten, and is, by the next tile.
        """
        chosen = [self.models[row] for row in (range(len(self.models)) if rows is None else rows)]
        yield from self.read([*chosen, self.base] if base and self.base is not None else chosen)

    def read(self, tensors: Sequence[Tensor]) -> Iterator[Floats]:
        """Tiles of any tensors of this shape; see `tiles`."""
        count = self.count
        if len(tensors) not in self.buffers:
            self.buffers[len(tensors)] = np.empty((len(tensors), TILE), np.float32)
        buffer = self.buffers[len(tensors)]
        for first in range(0, count, TILE):
            tile = buffer[:, : min(TILE, count - first)]
            for row, tensor in enumerate(tensors):
                tensor.read(first, tile[row])
            yield tile

    def whole(self, tensor: Tensor) -> Floats:
        """Return all numbers of one of the tensors, in its shape; for methods that solve for a matrix as a whole."""
        values = np.empty(count_of(tensor), np.float32)
        tensor.read(0, values)
        return values.reshape(tensor.shape)

    def combine(self, coefficients: Sequence[float] | Doubles, base: float = 0.0) -> Iterator[Floats]:
        """Yield a weighted sum of the models, and of the base.

        With r the model of the largest coefficient: ``x_r - sum_i c_i (x_r - x_i)``, which is the weighted sum where
        the coefficients sum to 1. In this form equal models give themselves bit for bit (signed zeros too), a model of
        coefficient 1 is returned bit for bit, and models that differ little lose nothing to rounding.

        Args:
            coefficients: Shape (models,).
            base: Of the base.

        Yields:
            Tiles of shape (values,).
        """
        every = np.asarray([*coefficients, base], np.float64)
        total = float(every.sum())
        every[np.abs(every) < NOTHING] = 0
        order = [int(row) for row in np.argsort(-np.abs(every), kind="stable") if every[row]]
        tensors = [self.base if row == len(self.models) else self.models[row] for row in order]
        factors = every[order].astype(np.float32)
        present = [tensor for tensor in tensors if tensor is not None]
        if not present:
            for tile in self.tiles(rows=[0]):
                yield np.zeros(tile.shape[1], np.float32)
            return
        for tile in self.read(present):
            yield _weighted(tile, factors, total)

    def gram(self) -> Doubles:
        """Inner products of the task vectors (model minus base), or of the models where there is no base.

        Returns:
            Shape (models, models).

        Raises:
            FloatingPointError: A model holds NaN or infinite numbers.
        """
        count = len(self.models)
        products = np.zeros((count, count), np.float64)
        for tile in self.tiles(base=self.base is not None):
            rows = tile[:count]
            if self.base is not None:
                rows -= tile[count]
            products += rows @ rows.T
        if not np.isfinite(products).all():
            raise FloatingPointError(self.name)
        return products

    def random(self, model: int, seed: int, number: int) -> np.random.Generator:
        """Return a generator for one tile of one model, the same whatever the order of models, tensors or threads."""
        name = f"{seed} {self.name} {self.seeds[model]} {number}"
        return np.random.Generator(np.random.SFC64(xxhash.xxh3_64_intdigest(name.encode())))


def _weighted(tile: Floats, factors: Floats, total: float) -> Floats:
    first: Floats = tile[0]
    if len(tile) == 1:
        if factors[0] != 1:
            first *= factors[0]
        return first
    rest = tile[1:]
    np.subtract(first, rest, out=rest)
    moved: Floats = np.dot(factors[1:], rest)
    if abs(total - 1) > NOTHING:
        first *= np.float32(total)
    merged: Floats = np.subtract(first, moved, out=moved)
    return merged


MergeMethod = Callable[..., Iterator[Floats]]
"""Takes a `Stack`, and by keyword those `MergeOptions` that its signature names; yields the merged values."""
merge_methods = Registry[MergeMethod](
    "merge-methods", ("bge_cocktail.merging.data_methods", "bge_cocktail.merging.spectral")
)
KARCHER_STEPS = 100
KARCHER_DONE = 1e-10


@merge_methods("linear")
def linear(stack: Stack) -> Iterator[Floats]:
    """Weighted mean of the same tensor of each model (Model soups, arXiv:2203.05482).

    ``sum_i w_i x_i``; with `normalise=False` the weights are taken as they are.
    """
    return stack.combine(stack.weights)


@merge_methods("task-arithmetic", base=True, normalises=False)
def task_arithmetic(stack: Stack, *, scale: float) -> Iterator[Floats]:
    """Base plus the weighted sum of task vectors (arXiv:2212.04089).

    ``base + scale * sum_i w_i (x_i - base)``. A weight of 1 each unless given; a negative one unlearns.
    """
    factors = scale * stack.weights
    return stack.combine(factors, base=1 - float(factors.sum()))


@merge_methods("slerp", models=2, normalises="always")
def slerp(stack: Stack) -> Iterator[Floats]:
    """Along the arc between two models, at the weight of the second (Shoemake, SIGGRAPH 1985).

    ``sin((1 - t) a) / sin(a) x_0 + sin(t a) / sin(a) x_1`` for the angle a between the flattened tensors and t the
    second's weight. Tensors that are parallel, or zero, are interpolated linearly.
    """
    gram = stack.gram()
    norms = np.sqrt(gram[0, 0] * gram[1, 1])
    cosine = float(np.clip(gram[0, 1] / norms, -1, 1)) if norms > 0 else 1.0
    angle = np.arccos(cosine)
    share = float(stack.weights[1])
    # at the ends of the arc, 180 degrees apart, no arc is meant more than another
    if np.sin(angle) < 1e-4:
        return stack.combine([1 - share, share])
    return stack.combine(np.sin([(1 - share) * angle, share * angle]) / np.sin(angle))


@merge_methods("karcher", normalises="always")
def karcher(stack: Stack) -> Iterator[Floats]:
    """The centre of any number of models on the sphere: slerp for many (Karcher, doi:10.1002/cpa.3160300502).

    The unit vector m that minimises ``sum_i w_i angle(m, x_i/|x_i|)²``, times ``sum_i w_i |x_i|``. It lies in the span
    of the models, so it is found from their inner products alone, by gradient steps along the sphere.
    """
    gram = stack.gram()
    norms = np.sqrt(np.diag(gram))
    if not norms.all():
        return stack.combine(stack.weights)
    directions = np.clip(gram / np.outer(norms, norms), -1, 1)
    # opposite models have no centre on the sphere
    if stack.weights @ directions @ stack.weights < NOTHING:
        return stack.combine(stack.weights)
    centre = _centre_on_sphere(directions, stack.weights)
    return stack.combine(centre / norms * float(stack.weights @ norms))


def _centre_on_sphere(gram: Doubles, weights: Doubles) -> Doubles:
    """Coefficients of the Karcher mean in terms of unit vectors with these inner products."""
    centre: Doubles = weights / np.sqrt(weights @ gram @ weights)
    for _ in range(KARCHER_STEPS):
        cosines = np.clip(gram @ centre, -1, 1)
        angles = np.arccos(cosines)
        # a/sin(a) goes to 1 with the angle
        stretch = weights * np.where(angles > 1e-6, angles / np.maximum(np.sin(angles), 1e-12), 1)
        step = stretch - float(stretch @ cosines) * centre
        length = float(np.sqrt(max(float(step @ gram @ step), 0.0)))
        if length < KARCHER_DONE:
            break
        centre = np.cos(length) * centre + np.sin(length) / length * step
        centre /= np.sqrt(centre @ gram @ centre)
    return centre


@merge_methods("model-stock", base=True, weighted=False, normalises="always")
def model_stock(stack: Stack) -> Iterator[Floats]:
    """Between the base and the mean of tuned models, the nearer to the mean the more they agree (arXiv:2403.19522).

    ``t mean_i x_i + (1 - t) base`` with ``t = N c / (1 + (N - 1) c)`` for N models and c the mean cosine between their
    task vectors, tensor by tensor. The paper has angles of up to 90 degrees; beyond, c counts as 0.
    """
    count = len(stack.models)
    if count == 1:
        return stack.combine([1.0])
    gram = stack.gram()
    norms = np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    cosines = np.divide(gram, norms, out=np.zeros_like(gram), where=norms > 0)
    above = cosines[np.triu_indices(count, 1)]
    cosine = max(float(above.mean()), 0.0)
    share = count * cosine / (1 + (count - 1) * cosine)
    return stack.combine([share / count] * count, base=1 - share)


# float32 magnitudes are ordered as the integers of their bits; the upper half of those makes the first histogram
HALF = 1 << 16


Trim = Callable[[int, Doubles], None]
"""Zeroes what isn't kept of the task vectors of a tile, shape (models, values), in place; gets the tile's number."""


@merge_methods("ties", base=True)
def ties(stack: Stack, *, density: float, scale: float, normalise: bool) -> Iterator[Floats]:
    """Task vectors trimmed to their largest numbers, then merged where signs agree (arXiv:2306.01708).

    Of each task vector the `density` largest numbers are kept, tensor by tensor. Each position takes the sign of the
    weighted sum there; the weighted mean of the numbers of that sign (the sum with `normalise=False`), times `scale`,
    is added to the base.
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
    """Return the base with a change; where there is none it stays bit for bit, signed zeros too."""
    return np.where(change == 0, base, base + change).astype(np.float32)


def _random_trim(stack: Stack, density: float, seed: int) -> Trim:
    # numbers are drawn as 16 bits, so the density is kept to 1/65536 and the mean is kept exactly
    limits = [max(1, round(part * HALF)) if part else 0 for part in _densities(stack, density)]

    def trim(number: int, vectors: Doubles) -> None:
        for model, (vector, limit) in enumerate(zip(vectors, limits, strict=True)):
            if limit >= HALF:
                continue
            generator = stack.random(model, seed, number)
            drawn = np.frombuffer(generator.bytes(2 * len(vector)), "<u2")
            vector *= drawn < limit
            vector *= HALF / limit if limit else 0  # rescaled so that the mean is kept (DARE, arXiv:2311.03099)

    return trim


def _densities(stack: Stack, density: float) -> Sequence[float]:
    return stack.densities or [density] * len(stack.models)


def _magnitudes(stack: Stack, density: float) -> list[np.float32]:
    """Return the magnitude of each task vector that its density of its numbers reach; exact, without sorting.

    Large tensors are never held: the bits of the magnitude are found 16 at a time from two histograms.
    """
    # a tensor of few numbers keeps one, so that tuning isn't undone there
    keep = [max(1, int(part * stack.count)) if part else 0 for part in _densities(stack, density)]
    models = range(len(stack.models))
    limits = np.array([0 if count else np.inf for count in keep], np.float32)
    partial = [model for model in models if 0 < keep[model] < stack.count]
    if not partial:
        return list(limits)
    if stack.count <= TILE:
        tile = next(stack.tiles(base=True))
        vectors = np.abs(tile[:-1] - tile[-1])
        for model in partial:
            place = stack.count - keep[model]
            limits[model] = np.partition(vectors[model], place)[place]
        return list(limits)
    upper = np.zeros((len(models), HALF), np.int64)
    for bits in _bits(stack):
        for model in partial:
            upper[model] += np.bincount(bits[model] >> 16, minlength=HALF)
    bins = {model: _nth_from_above(upper[model], keep[model]) for model in partial}
    lower = np.zeros((len(models), HALF), np.int64)
    for bits in _bits(stack):
        for model in partial:
            inside = bits[model][(bits[model] >> 16) == bins[model][0]]
            lower[model] += np.bincount(inside & (HALF - 1), minlength=HALF)
    for model, (first, left) in bins.items():
        limits.view(np.uint32)[model] = (first << 16) | _nth_from_above(lower[model], left)[0]
    return list(limits)


def _bits(stack: Stack) -> Iterator[np.ndarray]:
    for tile in stack.tiles(base=True):
        vectors = tile[:-1]
        np.subtract(vectors, tile[-1], out=vectors)
        np.abs(vectors, out=vectors)
        yield vectors.view(np.uint32)


def _nth_from_above(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """Return the bin that holds the wanted-th largest number, and its place from above within the bin."""
    reached = np.cumsum(counts[::-1])
    place = int(np.searchsorted(reached, wanted))
    before = int(reached[place - 1]) if place else 0
    return len(counts) - 1 - place, wanted - before
