"""A model cut into parts, of which each process holds one (FSDP2); and made whole again, to be written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bge_cocktail.training.parameters import is_layer

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
    """The tensors of a state, put together from the parts that all processes hold.

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
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    moments = {
        number: {name: part(value, parameters[number]) for name, value in kept.items()}
        for number, kept in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})


def _embeddings(model: SentenceTransformer) -> list[nn.Module]:
    """The embeddings of tokens; none where the model has no transformer, or one that doesn't say."""
    try:
        found = model[0].auto_model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return []
    return [found] if isinstance(found, nn.Module) else []
