"""The tensors of model folders, read in tiles: never a whole model, nor a whole tensor, in memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.errors import DataError
from bge_cocktail.layout import modules_of

Floats = NDArray[np.float32]
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F64", "I64", "U64"), 8),
}
FLOATS = ("F32", "F16", "BF16")
LARGEST_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies.

    Attributes:
        name: Its name in the file.
        file: The safetensors file.
        dtype: In safetensors' words: F32, BF16, I64, ...
        shape: Its shape.
        start: Its first byte in the file.
        size: Its bytes.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of a model folder.

    Attributes:
        name: How the user called the model.
        folder: Its folder.
        places: The folders of its modules within it.
        files: Weight files as paths within the folder, with the names of their tensors in order of place.
        tensors: All tensors by (number of the module, name): folders of modules may be called otherwise elsewhere.
    """

    name: str
    folder: Path
    places: tuple[Path, ...]
    files: Mapping[str, tuple[tuple[int, str], ...]]
    tensors: Mapping[tuple[int, str], Tensor]


def open_checkpoint(name: str, folder: Path) -> Checkpoint:
    """Read the headers of all weight files of a model folder.

    Args:
        name: How the user called it.
        folder: A sentence-transformers folder, or a transformers folder with safetensors.

    Raises:
        DataError: No safetensors, or a broken file.
    """
    modules = modules_of(folder) if (folder / "modules.json").is_file() else [("Transformer", folder)]
    files: dict[str, tuple[tuple[int, str], ...]] = {}
    tensors: dict[tuple[int, str], Tensor] = {}
    for number, (kind, path) in enumerate(modules):
        found = sorted(path.glob("*.safetensors")) if path.is_dir() else []
        if not found and path.is_dir() and any(path.glob("*.bin")):
            raise DataError(
                f"{path}: the weights are in a .bin file; save the model as safetensors first "
                "(load it with sentence-transformers and save it again)"
            )
        if not found and kind == "Transformer":
            raise DataError(f"{path}: no .safetensors file here; is {folder} a whole model folder?")
        for file in found:
            header = read_header(file)
            for tensor in header:
                key = (number, tensor.name)
                if key in tensors:
                    raise DataError(f"{file}: tensor '{tensor.name}' stands in {tensors[key].file.name} too")
                tensors[key] = tensor
            files[file.relative_to(folder).as_posix()] = tuple((number, tensor.name) for tensor in header)
    places = tuple(path.relative_to(folder) for _, path in modules)
    every = sorted(file.relative_to(folder) for file in folder.rglob("*.safetensors"))
    strays = [file.as_posix() for file in every if file.as_posix() not in files and not is_unused(file)]
    if strays:
        raise DataError(f"{folder}: no module owns {', '.join(strays)}; such a model (a Router?) can't be merged")
    return Checkpoint(name, folder, places, files, tensors)


def is_unused(path: Path) -> bool:
    """Whether a path within a model folder belongs to something else: an export, or checkpoints of a training."""
    return path.parts[0] in ("onnx", "openvino", ".cache", ".git") or path.parts[0].startswith("checkpoint")


def read_header(file: Path) -> list[Tensor]:
    """The tensors of a safetensors file in order of place, every claim of the header checked.

    Raises:
        DataError: The file is truncated, or its header is broken or contradicts itself.
    """
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little") if size >= 8 else 0
        if not 2 <= length <= min(size - 8, LARGEST_HEADER):
            raise DataError(f"{file}: not a safetensors file, or cut off ({size} bytes, header of {length})")
        try:
            header = json.loads(stream.read(length))
            entries = [_tensor(file, name, entry, 8 + length) for name, entry in header.items() if name[:2] != "__"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file}: broken safetensors header: {error}") from None
    entries.sort(key=lambda tensor: (tensor.start, tensor.size))
    place = 8 + length
    for tensor in entries:
        if tensor.start != place:
            raise DataError(f"{file}: tensor '{tensor.name}' overlaps another or leaves a gap before it")
        place += tensor.size
    if place != size:
        raise DataError(f"{file}: {size} bytes, but its header speaks of {place}; the file is cut off or damaged")
    return entries


def _tensor(file: Path, name: str, entry: Any, data: int) -> Tensor:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    whole = all(isinstance(number, int) and number >= 0 for number in (start, end, *shape))
    if not whole or end - start != math.prod(shape) * ITEM_BYTES[entry["dtype"]]:
        raise ValueError(f"'{name}' has offsets {start} to {end} for shape {list(shape)} of {entry['dtype']}")
    return Tensor(name, file, entry["dtype"], shape, data + start, end - start)


class Reader:
    """Reads parts of tensors as float32 into given memory; files stay open until it is closed."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}
        self._raw = bytearray()

    def read(self, tensor: Tensor, first: int, out: Floats) -> None:
        """Fill `out`, shape (values,), from the tensor's values `first` on.

        Raises:
            DataError: The file ended early.
        """
        width = ITEM_BYTES[tensor.dtype]
        if tensor.dtype == "F32":
            self.read_bytes(tensor, first * width, out.data.cast("B"))
            return
        if len(self._raw) < len(out) * width:
            self._raw = bytearray(len(out) * width)
        view = memoryview(self._raw)[: len(out) * width]
        self.read_bytes(tensor, first * width, view)
        if tensor.dtype == "F16":
            out[:] = np.frombuffer(view, np.float16)
        else:
            # a bfloat16 is the upper half of a float32
            np.left_shift(np.frombuffer(view, np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32)

    def read_bytes(self, tensor: Tensor, offset: int, out: memoryview) -> None:
        """Fill `out` from the tensor's byte `offset` on."""
        descriptor = self._open.get(tensor.file)
        if descriptor is None:
            descriptor = self._open[tensor.file] = os.open(tensor.file, os.O_RDONLY)
        done = 0
        while done < len(out):
            count = os.preadv(descriptor, [out[done:]], tensor.start + offset + done)
            if count == 0:
                raise DataError(f"{tensor.file}: ended inside tensor '{tensor.name}'; the file is cut off")
            done += count

    def close(self) -> None:
        """Close all files."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def to_bytes(values: Floats, dtype: str) -> memoryview:
    """Float32 values, shape (values,), as the bytes of another type, rounded to nearest even."""
    if dtype == "F16":
        return values.astype(np.float16).data.cast("B")
    if dtype == "BF16":
        bits = values.view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return (rounded >> np.uint32(16)).astype(np.uint16).data.cast("B")
    return values.data.cast("B")


def header_bytes(tensors: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The header of a safetensors file.

    Args:
        tensors: Name, dtype and shape of each, in order of place.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, dtype, shape in tensors:
        size = math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    # readers want the data to begin at a multiple of 8
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
