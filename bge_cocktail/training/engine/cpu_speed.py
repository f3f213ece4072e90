"""What makes training quick on a CPU."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import embedding, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

# of malloc.h
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


class AttentionInFull(TorchFunctionMode):
    """Computes scaled dot-product attention in fp32 under autocast to bf16.

    On a CPU, the backward pass of the fused attention takes three times as long in bf16 (torch 2.13), a third of all
    that a step takes; the rest gains from bf16.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention or args[0].dtype is not torch.bfloat16:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            values = {name: _in_full(value) for name, value in (kwargs or {}).items()}
            return func(*map(_in_full, args), **values).to(torch.bfloat16)


class OneLookup(TorchFunctionMode):
    """Looks the tokens of several chunks up together.

    The gradient of a lookup is as large as the vocabulary's weights; made and added up for every chunk, it was a
    twelfth of a step in fp32.

    Args:
        tokens: Of each chunk, the very tensors that the model will look up. (texts, tokens)
    """

    def __init__(self, tokens: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._tokens = tokens
        self._weight: torch.Tensor | None = None
        self._found: tuple[torch.Tensor, ...] = ()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not embedding:
            return func(*args, **(kwargs or {}))
        tokens, weight, *more = args
        place = next((place for place, one in enumerate(self._tokens) if one is tokens), None)
        if place is None or (self._weight is not None and weight is not self._weight):
            return func(*args, **(kwargs or {}))
        if self._weight is None:
            self._weight = weight
            flat = func(torch.cat([token.flatten() for token in self._tokens]), weight, *more, **(kwargs or {}))
            self._found = flat.split([token.numel() for token in self._tokens])
        return self._found[place].view(*tokens.shape, -1)


def fast_attention(device: str) -> AbstractContextManager[Any]:
    """Return what makes attention quick on a device."""
    return AttentionInFull() if device == "cpu" else nullcontext()


def joint_lookup(chunks: Sequence[Mapping[str, Any]], device: str, compiled: bool) -> AbstractContextManager[Any]:
    """Return what makes looking up tokens quick: `OneLookup` on a CPU, where it was measured.

    Args:
        chunks: Features of each chunk.
        device: Where it is computed.
        compiled: Whether torch compiles the model, which would trace the lookup of one batch into all.
    """
    tokens = [chunk["input_ids"] for chunk in chunks if "input_ids" in chunk]
    return OneLookup(tokens) if device == "cpu" and not compiled and tokens else nullcontext()


def keep_memory() -> None:
    """Have glibc keep freed memory for the next step, instead of giving it back and having each page cleared again.

    That was a seventh of the CPU time of short trainings. What is kept must be given back now and then: `free_memory`.
    """
    change = _of_glibc("mallopt")
    if change is not None:
        change(_MMAP_MAX, 0)
        change(_TRIM_THRESHOLD, 2**31 - 1)


def free_memory() -> None:
    """Have glibc give back all memory that is free, also between what is in use."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def resident_memory() -> int:
    """Bytes of this process that are in memory; 0 where the system doesn't say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def _of_glibc(name: str) -> Any:
    # not in every C library
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def _in_full(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
