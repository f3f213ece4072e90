"""Where to compute, and in which arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bge_cocktail.errors import CocktailError, UsageError


def choose_device(name: str) -> str:
    """The device to compute on.

    Raises:
        UsageError: It isn't here.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UsageError(f"device '{name}' can't be used here ({reason}); try auto or cpu") from None
    return name


def resolve_precision(name: str, device: str) -> str:
    """The arithmetic to compute in: ``auto`` is bf16 where the device computes in it, else fp32.

    Raises:
        UsageError: fp16 without a GPU (torch would accept it and overflow).
    """
    import torch

    if name == "fp16" and not device.startswith("cuda"):
        raise UsageError(f"precision fp16 needs a CUDA device, this is {device}; choose bf16, fp32 or auto")
    if name != "auto":
        return name
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device == "cpu":
        able = torch.cpu.get_capabilities()
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
    return "fp32"


@contextmanager
def enough_memory(what: str, cure: str) -> Iterator[None]:
    """Turn running out of a device's memory into one line.

    Raises:
        CocktailError: The device ran out of memory.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise CocktailError(
            f"{what}: out of memory on the device; {cure} ({str(error).splitlines()[0][:120]})"
        ) from None
