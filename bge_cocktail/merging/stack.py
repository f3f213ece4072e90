"""The same tensor of every model of a merge, one upon the other: what a merge method works on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash
from numpy.typing import NDArray

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
    """

    name: str
    shape: tuple[int, ...]
    models: Sequence[Tensor]
    weights: Doubles
    seeds: Sequence[int]
    base: Tensor | None = None
    statistics: Sequence[Tensor] = ()
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
        """All numbers of one of the tensors, in its shape; for methods that solve for a matrix as a whole."""
        values = np.empty(count_of(tensor), np.float32)
        tensor.read(0, values)
        return values.reshape(tensor.shape)

    def combine(self, coefficients: Sequence[float] | Doubles, base: float = 0.0) -> Iterator[Floats]:
        """A weighted sum of the models, and of the base.

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
        """A generator for one tile of one model, the same whatever the order of models, tensors or threads."""
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
