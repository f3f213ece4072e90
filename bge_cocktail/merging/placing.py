"""Weights of models put into one that is loaded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bge_cocktail.merging.checkpoints import Checkpoint
from bge_cocktail.merging.group_weights import GroupWeights
from bge_cocktail.merging.plan import Plan
from bge_cocktail.merging.stack import TILE
from bge_cocktail.merging.tensors import FLOATS, Floats, Key, Tensor, count_of
from bge_cocktail.options import Merging

if TYPE_CHECKING:
    import torch
    from torch.nn import Module


def loadable_folder(checkpoint: Checkpoint, scratch: Path) -> Path:
    """A folder that a library can load: the model's own, or a new one in `scratch` of what is computed or pickled."""
    folder = checkpoint.folder
    if checkpoint.made is None and all((folder / file).is_file() for file in checkpoint.files):
        return folder
    from bge_cocktail.merging.writing import write_model

    folder = Path(tempfile.mkdtemp(dir=scratch))
    write_model(Plan((checkpoint,), None, Merging(), GroupWeights([1.0], {})), folder)
    return folder


def parameters_by_key(model: Iterable[Module], checkpoint: Checkpoint) -> dict[Key, torch.Tensor]:
    """Which tensor of a checkpoint each parameter of a loaded model, module by module, is.

    The names differ by what classes put before them (``auto_model.`` on one side, ``bert.`` on the other). A parameter
    that the checkpoint doesn't have stays as it was loaded: such are the poolers that no embedding uses.
    """
    found: dict[Key, torch.Tensor] = {}
    for number, module in enumerate(model):
        endings: dict[str, list[str]] = {}
        for key, tensor in checkpoint.tensors.items():
            if key[0] == number and tensor.dtype in FLOATS:
                for start in _starts(key[1]):
                    endings.setdefault(key[1][start:], []).append(key[1])
        for name, parameter in module.state_dict(keep_vars=True).items():
            match = next((endings[name[s:]] for s in _starts(name) if len(endings.get(name[s:], [])) == 1), None)
            if match and parameter.is_floating_point():
                found[number, match[0]] = parameter.detach()
    return found


def put(parameters: Mapping[Key, torch.Tensor], tensors: Iterable[tuple[Key, Iterable[Floats]]]) -> None:
    """Overwrite parameters of a loaded model, tile by tile."""
    import torch

    with torch.no_grad():
        for key, tiles in tensors:
            place = 0
            target = parameters[key].view(-1)
            for tile in tiles:
                target[place : place + len(tile)] = torch.from_numpy(tile)
                place += len(tile)


def tiles_of(tensor: Tensor) -> Iterator[Floats]:
    """A tensor's numbers, flattened, part by part."""
    count = count_of(tensor)
    for first in range(0, count, TILE):
        values = np.empty(min(TILE, count - first), np.float32)
        tensor.read(first, values)
        yield values


def _starts(name: str) -> list[int]:
    """Where a dotted name may be cut at its front, from the whole name on; two parts at least are left."""
    dots = [place + 1 for place, sign in enumerate(name) if sign == "."]
    return [0, *dots[:-1]]
