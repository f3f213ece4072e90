"""Which of the candidates that are left become negatives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.options import Mining
from bge_cocktail.registry import Registry

Choice = Callable[[NDArray[np.float32], int, Mining, np.random.Generator], NDArray[np.int64]]
"""Similarities of the candidates left, by rank, and how many to choose; places of the chosen, in order of rank."""
choices: Registry[Choice] = Registry("choices")


@choices("top")
def top(
    similarities: NDArray[np.float32], count: int, _options: Mining, _generator: np.random.Generator
) -> NDArray[np.int64]:
    """The hardest."""
    return np.arange(min(count, len(similarities)))


@choices("random")
def random(
    similarities: NDArray[np.float32], count: int, _options: Mining, generator: np.random.Generator
) -> NDArray[np.int64]:
    """A draw, each as likely as any other."""
    return np.sort(generator.permutation(len(similarities))[:count])


@choices("stratified")
def stratified(
    similarities: NDArray[np.float32], count: int, _options: Mining, generator: np.random.Generator
) -> NDArray[np.int64]:
    """One from each of as many stretches of ranks, so that hard and easier ones are mixed."""
    if len(similarities) <= count:
        return np.arange(len(similarities))
    edges = np.linspace(0, len(similarities), count + 1).astype(np.int64)
    return edges[:-1] + generator.integers(0, np.diff(edges))


@choices("softmax")
def softmax(
    similarities: NDArray[np.float32], count: int, options: Mining, generator: np.random.Generator
) -> NDArray[np.int64]:
    """A draw without replacement, with odds exp(similarity / choice_temperature) (Gumbel-top-k, arXiv:1903.06059)."""
    noise = generator.gumbel(size=len(similarities))
    order = np.argsort(-(similarities / options.choice_temperature + noise), kind="stable")
    return np.sort(order[:count])
