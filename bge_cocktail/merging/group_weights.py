"""Weights that differ from tensor to tensor: by patterns of names, and from the first layer to the last."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from bge_cocktail.errors import UsageError

# what comes before the first layer, in the names of the families that there are
EMBEDDING = re.compile(r"embed|(^|\.)(shared|wte|wpe)\.")
LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class GroupWeights:
    """The weights of each tensor.

    Attributes:
        weights: Of tensors for which nothing else is said.
        patterns: By pattern of names; of several that match, the last counts.
        anchors: Weights at the first and the last layer, and between; empty where all layers weigh the same.
        layers: How many layers the models have.
    """

    weights: Sequence[float]
    patterns: Mapping[str, Sequence[float]]
    anchors: Sequence[Sequence[float]] = ()
    layers: int = 0

    def of(self, name: str) -> Sequence[float]:
        """The weights of a tensor, shape (models,)."""
        found = [weights for pattern, weights in self.patterns.items() if fnmatchcase(name, pattern)]
        if found:
            return found[-1]
        if not self.anchors:
            return self.weights
        layer = layer_of(name, self.layers)
        place = layer / max(self.layers - 1, 1) * (len(self.anchors) - 1)
        columns = np.asarray(self.anchors, np.float64).T
        return [float(np.interp(place, range(len(self.anchors)), column)) for column in columns]


def layer_of(name: str, layers: int) -> int:
    """The layer that a tensor belongs to; embeddings go with the first, heads and last norms with the last."""
    match = LAYER.search(name)
    if match:
        return int(match[1])
    return 0 if EMBEDDING.search(name) else max(layers - 1, 0)


def group_weights(
    names: Iterable[str],
    weights: Sequence[float],
    patterns: Mapping[str, Sequence[float]],
    anchors: Sequence[Sequence[float]],
) -> GroupWeights:
    """Arrange the weights of all tensors.

    Args:
        names: Of all tensors.
        weights: Where nothing else is said.
        patterns: Weights by pattern of names.
        anchors: Weights from the first layer to the last.

    Raises:
        UsageError: A pattern that no tensor matches, or anchors without layers.
    """
    every = list(names)
    if not every:
        raise UsageError("no tensor is left to merge: --exclude takes all of them from the first model")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise UsageError(f"weights for '{pattern}': no tensor has such a name; one is '{every[-1]}'")
    layers = [int(match[1]) for match in map(LAYER.search, every) if match]
    if not anchors:
        return GroupWeights(weights, patterns)
    if len(anchors) < 2 or not layers:
        raise UsageError(
            "layer weights need at least two lists (0.9,0.1;0.1,0.9)"
            if layers
            else "the models have no numbered layers"
        )
    return GroupWeights(weights, patterns, anchors, max(layers) + 1)
