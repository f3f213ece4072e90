"""The layers of a model, told from the names of its parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable

# "encoder.layer.3." in BERT and its kin, "layers.3." in newer ones, "blocks.3.", "h.3." in GPT-2's
LAYER = re.compile(r"(?:\b|_)(?:layers?|blocks?|h)\.(\d+)\.")
# what comes before the first layer, in the names of the families that there are
EMBEDDINGS = re.compile(r"embed|(?:^|\.)(?:shared|wte|wpe)\.")
POSITIONS = re.compile(r"position_embeddings|embed_positions|\bwpe\.")


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a parameter belongs to; None before the first and after the last."""
    match = LAYER.search(name)
    return int(match[1]) if match else None


def nearest_layer(name: str, layers: int) -> int:
    """Return the layer that a parameter goes with: embeddings with the first, heads and last norms with the last."""
    number = layer_of(name)
    if number is not None:
        return number
    return 0 if EMBEDDINGS.search(name) else max(layers - 1, 0)


def is_layer(name: str) -> bool:
    """Return whether a module's name is that of a layer, rather than of something in one."""
    match = LAYER.search(name + ".")
    return match is not None and match.end() == len(name) + 1


def layer_count(names: Iterable[str]) -> int:
    """Return how many layers the parameters make."""
    return 1 + max((number for number in map(layer_of, names) if number is not None), default=-1)
