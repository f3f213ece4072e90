"""The layers of a model, told from the names of its parameters."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

# what comes before the first layer, in the names of the families that there are
EMBEDDING = re.compile(r"embed|(^|\.)(shared|wte|wpe)\.")


LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.")


def layer_of(name: str, layers: int) -> int:
    """The layer that a tensor belongs to; embeddings go with the first, heads and last norms with the last."""
    match = LAYER.search(name)
    if match:
        return int(match[1])
    return 0 if EMBEDDING.search(name) else max(layers - 1, 0)


# "encoder.layer.3." in BERT and its kin, "layers.3." in newer ones, "h.3." in GPT-2's
_LAYER = re.compile(r"(?:\b|_)(?:layer|layers|h|block)\.(\d+)\.")


_EMBEDDINGS = re.compile(r"\b(?:embeddings?|embed_tokens|wte|wpe|shared|tok_embeddings)\.")
_POSITIONS = re.compile(r"position_embeddings|embed_positions|\bwpe\.")


def layer_number(name: str) -> int | None:
    """The number of the layer that a parameter belongs to; None for embeddings and what follows the layers."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def is_layer(name: str) -> bool:
    """Whether a module's name is that of a layer, rather than of something in one."""
    found = _LAYER.search(name + ".")
    return found is not None and found.end() == len(name) + 1


def layer_count(names: list[str]) -> int:
    """How many layers the parameters make."""
    return 1 + max((number for number in map(layer_number, names) if number is not None), default=-1)
