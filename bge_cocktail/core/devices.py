"""What this machine offers: where to compute and in which arithmetic; whether the hub is within reach."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from bge_cocktail.core.errors import CocktailError, UsageError


def choose_device(name: str) -> str:
    """Return the device to compute on.

    Raises:
        UsageError: It isn't here.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if torch.device(name).type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise UsageError(f"device '{name}' can't be used here ({reason}); try auto or cpu") from None
    return name


def resolve_precision(name: str, device: str) -> str:
    """Return the arithmetic to compute in: ``auto`` is bf16 where the device computes in it, else fp32.

    Raises:
        UsageError: fp16 without a GPU (torch would accept it and overflow), fp8 where card or libraries lack it.
    """
    import torch

    if name in ("fp16", "fp8") and not device.startswith("cuda"):
        raise UsageError(f"precision {name} needs a CUDA device, this is {device}; choose bf16, fp32 or auto")
    if name == "fp8":
        _require_fp8()
    if name != "auto":
        return name
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device == "cpu":
        able = torch.cpu.get_capabilities()
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
    return "fp32"


def _require_fp8() -> None:
    import torch

    major, minor = torch.cuda.get_device_capability()
    if (major, minor) < (8, 9):
        raise UsageError(
            f"precision fp8 needs a card of compute capability 8.9 (Ada, Hopper) or newer, this is {major}.{minor}; "
            "choose bf16"
        )
    if not any(find_spec(package) for package in ("torchao", "transformer_engine")):
        raise UsageError("precision fp8 needs torchao or transformer_engine; pip install torchao")


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


NETWORK_SECONDS = 2.0


def hub_answers() -> bool:
    """Return whether the hub answers at all; in a thread, because looking up its address can hang on its own."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=NETWORK_SECONDS)
            answered.set()
        except Exception as error:  # whatever the reason, it is out of reach; the caller says so
            del error

    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(NETWORK_SECONDS + 0.3)
