"""Checkpoints that are whole: sealed when their last byte is on the disk, and read only with an unbroken seal."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from bge_cocktail.errors import CocktailError
from bge_cocktail.options import Tuning
from bge_cocktail.outputs import write_json
from bge_cocktail.provenance import hash_file
from bge_cocktail.training.sharding import load_whole, whole

SEAL = "seal.json"
WEIGHTS = "model.safetensors"


def save_weights(parts: nn.Module, folder: Path, write: bool = True) -> None:
    """Write weights as they are in training, adapters and heads of tasks apart.

    Args:
        parts: The model and the heads.
        folder: The checkpoint.
        write: Whether this process writes; all that hold parts of the model take part.
    """
    state = whole(parts.state_dict(), keep=write)
    if not write:
        return
    folder.mkdir(parents=True, exist_ok=True)
    # copies, for safetensors takes no two names for one tensor
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, folder / WEIGHTS)


def load_weights(parts: nn.Module, folder: Path) -> None:
    """Put the weights of a checkpoint into a model.

    Raises:
        CocktailError: They can't be read, or they are another model's.
    """
    try:
        load_whole(parts, load_file(folder / WEIGHTS))
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CocktailError(f"the checkpoint {folder} can't be loaded: {error}") from error


def seal(folder: Path) -> None:
    """Note the hash of every file of a checkpoint, all of it on the disk before."""
    (folder / SEAL).unlink(missing_ok=True)
    hashes = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        hashes[file.relative_to(folder).as_posix()] = hash_file(file)
    write_json(folder / SEAL, hashes)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint was written to its end, and holds what was written."""
    try:
        hashes: dict[str, Any] = json.loads((folder / SEAL).read_text())
        return bool(hashes) and all(hash_file(folder / name) == value for name, value in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def had_stopped(folder: Path, options: Tuning) -> bool:
    """Whether a checkpoint is of the step after which its training stopped early."""
    state = json.loads((folder / "trainer_state.json").read_text())
    kept = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback", {}).get("attributes", {})
    return bool(options.patience) and kept.get("early_stopping_patience_counter", 0) >= options.patience


def checkpoints_in(folder: Path) -> list[Path]:
    """All checkpoints, the newest first, whole or not."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rsplit("-", 1)[1].isdigit()]
    return sorted(found, key=lambda path: -int(path.name.rsplit("-", 1)[1]))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; ones that were cut off or damaged are passed over."""
    return next((path for path in checkpoints_in(folder) if is_whole(path)), None)
