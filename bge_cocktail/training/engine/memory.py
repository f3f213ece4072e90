"""How much memory a training may take, how much a token takes, and what is left of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from bge_cocktail.training.engine.malloc import free_memory

GB = 1e9
# other programs want memory, too; in a container there are none
_OF_FREE, _OF_CONTAINER = 0.5, 0.8
# what is freed leaves holes in what a process holds, measured with MiniLM under limits of 1.5 and 2.5 GB
_OF_ROOM, _HOLES, _NEAR = 0.8, 0.25 * GB, 0.6
# gradients, and the two running means of Adam
_COPIES_OF_WEIGHTS = 3
_CGROUPS = Path("/sys/fs/cgroup")
# folder below that, names of limit, use, and what of the use can be given back, in version 2 and 1 of the interface
_MEMORY_CGROUPS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def most_memory(limit: float, device: torch.device) -> float:
    """Return how many bytes a training may take on its device.

    Args:
        limit: GB; 0 for what it has, and half of what is free (four fifths within the limits of a container).
        device: Where it computes.
    """
    return limit * GB if limit else used_memory(device) + _free_share(device)


def room_for_step(most: float, device: torch.device, model: nn.Module) -> float:
    """Return how many bytes a step may hold beside the weights, their gradients and the optimizer's state.

    Args:
        most: What all of the training may take.
        device: Where it computes.
        model: What is trained; its gradients and the optimizer's state are yet to come.
    """
    weights: int = sum(one.numel() * one.element_size() for one in model.parameters() if one.requires_grad)
    return max(0.0, _OF_ROOM * (most - used_memory(device) - _COPIES_OF_WEIGHTS * weights) - _HOLES)


def bytes_a_token(embed: Callable[[], Tensor], tokens: int, model: nn.Module) -> float:
    """Return how many bytes a forward pass keeps of each token for the backward pass.

    Args:
        embed: A forward pass.
        tokens: How many it reads, padding too.
        model: Its weights don't count.
    """
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold the graph that holds it

    saved = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with torch.random.fork_rng(), torch.enable_grad(), saved:
        embed()
    return max(1.0, sum(kept.values()) / tokens)


def give_back(most: float, device: torch.device) -> None:
    """Give freed memory back to the system where a process comes near to what it may take.

    Args:
        most: Bytes that it may take.
        device: Where it computes.
    """
    if device.type == "cpu" and resident_memory() > _NEAR * most:
        free_memory()


def used_memory(device: torch.device) -> int:
    """Return the bytes that this process has taken on a device."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else resident_memory()


def _free_share(device: torch.device) -> float:
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(_OF_CONTAINER * (torch.cuda.mem_get_info(device)[0] + held))
    within = [*_free_in_cgroups(), *_free_of_addresses()]
    shares: list[float] = [_OF_FREE * psutil.virtual_memory().available, *(_OF_CONTAINER * one for one in within)]
    return max(0.0, min(shares))


def resident_memory() -> int:
    """Return the bytes of this process that are in memory."""
    return int(psutil.Process().memory_info().rss)


def _free_of_addresses() -> Iterable[int]:
    """What is left of the limit of addresses (ulimit -v), where the system has such."""
    if hasattr(psutil, "RLIMIT_AS"):
        most = psutil.Process().rlimit(psutil.RLIMIT_AS)[0]
        if most != psutil.RLIM_INFINITY:
            yield most - psutil.Process().memory_info().vms


def _free_in_cgroups(of_process: Path = Path("/proc/self/cgroup"), root: Path = _CGROUPS) -> Iterable[int]:
    """What is left of the limits of this process's control group and of those above it, containers' too."""
    try:
        lines = of_process.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in _MEMORY_CGROUPS:
            continue
        folder, limit, use, file_cache = _MEMORY_CGROUPS[controllers]
        names = Path(path).parts[1:]
        for depth in range(len(names) + 1):
            group = (root / folder).joinpath(*names[:depth])
            try:
                most = (group / limit).read_text().strip()
                stat = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
                if most != "max":
                    yield int(most) - int((group / use).read_text()) + int(stat.get(file_cache, 0))
            except (OSError, ValueError):  # not here, or not seen from inside of a container
                continue
