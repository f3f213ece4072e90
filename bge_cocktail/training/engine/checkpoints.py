"""Checkpoints that are whole: sealed, read only with an unbroken seal; and models cut into parts (FSDP2)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from bge_cocktail.core.errors import CocktailError
from bge_cocktail.core.outputs import write_json
from bge_cocktail.core.runs import hash_file
from bge_cocktail.models.layers import is_layer
from bge_cocktail.options import CommonTrainOptions

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def shard(model: SentenceTransformer, heads: Sequence[nn.Module], processes: int) -> None:
    """Cut parameters into parts: of each, every process keeps one, and has the whole only while it computes.

    Layers and the embeddings of tokens are gathered one at a time, what is left of the model together.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(model.device.type, (processes,))
    for module in [one for name, one in model.named_modules() if is_layer(name)]:
        fully_shard(module, mesh=mesh)
    for module in (*_embeddings(model), *heads, model):
        fully_shard(module, mesh=mesh)
    # made here once, for what is first made in evaluation's inference mode can't be trained
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()


def whole(values: Any, keep: bool = True) -> Any:
    """Return the tensors of a state, put together from the parts that all processes hold.

    Args:
        values: A tensor, or mappings and lists of them.
        keep: Whether this process wants them; all take part.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(values, Mapping):
        return {name: whole(value, keep) for name, value in values.items()}
    if isinstance(values, list):
        return [whole(value, keep) for value in values]
    if isinstance(values, DTensor):
        full = values.full_tensor()
        return full.cpu() if keep else None
    return values


def part(value: Any, like: Any) -> Any:
    """This process's part of a whole tensor, where a tensor of the same shape is cut; else the value itself."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or not isinstance(value, torch.Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def load_whole(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Put whole weights into a module, each process its part where they are cut."""
    own = module.state_dict()
    module.load_state_dict({name: part(value, own.get(name)) for name, value in state.items()})


def load_whole_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Put an optimizer's whole state into it, each process its part where the parameters are cut."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {name: part(value, parameters[number]) for name, value in kept.items()}
        for number, kept in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})


def _embeddings(model: SentenceTransformer) -> list[nn.Module]:
    """Return the embeddings of tokens; none where the model has no transformer, or one that doesn't say."""
    try:
        embeddings = model[0].auto_model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return []
    return [embeddings] if isinstance(embeddings, nn.Module) else []


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
    """Return whether a checkpoint was written to its end, and holds what was written."""
    try:
        hashes: dict[str, Any] = json.loads((folder / SEAL).read_text())
        return bool(hashes) and all(hash_file(folder / name) == value for name, value in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def had_stopped(folder: Path, options: CommonTrainOptions) -> bool:
    """Return whether a checkpoint is of the step after which its training stopped early."""
    state = json.loads((folder / "trainer_state.json").read_text())
    kept = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback", {}).get("attributes", {})
    return bool(options.patience) and kept.get("early_stopping_patience_counter", 0) >= options.patience


def load_mean(parts: nn.Module, folders: Sequence[Path]) -> None:
    """Put the mean of the weights of checkpoints into a model.

    Raises:
        CocktailError: One can't be read.
    """
    total: dict[str, torch.Tensor] = {}
    try:
        for folder in folders:
            if not is_whole(folder):
                raise CocktailError(f"the checkpoint {folder} is damaged; begin again without `resume`")
            for name, value in load_file(folder / WEIGHTS).items():
                # numbers of positions and the like are the same in all
                added = value.double() / len(folders) if value.is_floating_point() else value
                total[name] = total[name] + added if name in total and value.is_floating_point() else added
    except (OSError, ValueError, SafetensorError) as error:
        raise CocktailError(f"a checkpoint in {folders[0].parent} can't be loaded: {error}") from error
    own = parts.state_dict()
    load_whole(parts, {name: value.to(own[name].dtype) for name, value in total.items()})


def step_of(folder: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(folder.name.rsplit("-", 1)[1])


def checkpoints_in(folder: Path) -> list[Path]:
    """Return all checkpoints, the newest first, whole or not."""
    folders = [path for path in folder.glob("checkpoint-*") if path.name.rsplit("-", 1)[1].isdigit()]
    return sorted(folders, key=lambda path: -step_of(path))


def checkpoints_of_evaluations(folder: Path, every: int, last: int) -> list[Path]:
    """Return the checkpoints of evaluations, the newest first.

    Others are written when a training is stopped, or by `save_steps`: what comes out may not depend on those.

    Args:
        folder: Holds all checkpoints.
        every: Steps between evaluations.
        last: The last step of all.
    """
    return [path for path in checkpoints_in(folder) if step_of(path) % every == 0 or step_of(path) == last]


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint; ones that were cut off or damaged are passed over."""
    return next((path for path in checkpoints_in(folder) if is_whole(path)), None)
