"""PyTorch's own weight files (.bin), read without running what is in them."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

from bge_cocktail.errors import DataError
from bge_cocktail.merging.safetensors_file import check_name
from bge_cocktail.merging.tensors import ArrayTensor

# whatever the unpickler meets in a damaged file
BROKEN = (
    *(RuntimeError, ValueError, EOFError, LookupError, AttributeError, TypeError, AssertionError, ArithmeticError),
    *(pickle.UnpicklingError, struct.error),
)


def read_pickle(path: Path) -> tuple[dict[str, ArrayTensor], dict[str, str]]:
    """The tensors of a PyTorch file, mapped into memory and not loaded.

    Only tensors and plain values are unpickled (``weights_only``); anything else is refused.

    Returns:
        Tensors by name in the file's order, and tied tensors: name left out by name kept, the first in the file's order
        being kept.

    Raises:
        DataError: Not such a file, one that holds more than tensors, or of types that can't be merged.
    """
    import torch

    dtypes = {
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.int16: "I16",
        torch.int8: "I8",
        torch.uint8: "U8",
        torch.bool: "BOOL",
    }
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except BROKEN as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise DataError(f"{path}: not a PyTorch file of tensors alone, or damaged: {reason}") from None
    if not isinstance(state, dict) or not state:
        raise DataError(f"{path}: expected tensors by name, found {type(state).__name__ if state else 'nothing'}")
    tensors: dict[str, ArrayTensor] = {}
    tied: dict[str, str] = {}
    owners: dict[object, str] = {}
    for name, tensor in state.items():
        try:
            check_name(name)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
        plain = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.dtype not in dtypes:
            kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise DataError(f"{path}: '{name}' is {kind}; this can be merged: {', '.join(dtypes.values())}")
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and place in owners:
            tied[name] = owners[place]
            continue
        owners[place] = name
        flat = tensor.detach().resolve_neg().contiguous().flatten()
        values = flat.view(torch.uint16) if tensor.dtype == torch.bfloat16 else flat
        tensors[name] = ArrayTensor(values.numpy(), dtypes[tensor.dtype], tuple(tensor.shape))
    return tensors, tied


def _is_zip(path: Path) -> bool:
    """Whether the file is of the newer kind, which alone can be mapped."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"
