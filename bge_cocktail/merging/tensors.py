"""Tensors that are read in tiles as float32, and the safetensors format: read, believing none of it, and written."""

from __future__ import annotations

import io
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from bge_cocktail.core.errors import DataError
from bge_cocktail.core.outputs import refuse_pipe

Floats = NDArray[np.float32]
Key = tuple[int, str]
"""Number of the module in its model, and name of the tensor in that module."""
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8"), 1),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F64", "I64", "U64"), 8),
}
FLOATS = ("F32", "F16", "BF16")
# bytes that lie between two reads and are still read, so that the hash of a file comes with its reading
LARGEST_GAP = 1 << 16


class Tensor(Protocol):
    """Numbers of a model that can be read in parts.

    Attributes:
        dtype: In safetensors' words: F32, BF16, I64, ...
        shape: Its shape.
    """

    @property
    def dtype(self) -> str:
        """Type of its numbers."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    def read(self, first: int, out: Floats) -> None:
        """Fill `out`, shape (values,), from the flattened tensor's values `first` on; for floating types."""
        ...

    def content(self) -> bytes:
        """Return all its bytes, little-endian; for tensors of whole numbers, which are small."""
        ...


def count_of(tensor: Tensor) -> int:
    """Return how many numbers a tensor has."""
    return math.prod(tensor.shape)


class WeightsFile:
    """A file of weights that is read in parts, and hashed in the same pass as far as it is read in order.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        refuse_pipe(path)
        self.path = path
        self._file: io.FileIO | None = None
        self._digest = xxhash.xxh3_128()
        self._hashed = 0

    def read(self, offset: int, out: memoryview) -> None:
        """Fill `out` from byte `offset` on.

        Raises:
            DataError: The file ended early.
        """
        self.peek(offset, out)
        end = offset + len(out)
        if self._hashed < end and offset - self._hashed <= LARGEST_GAP:
            if offset > self._hashed:
                gap = memoryview(bytearray(offset - self._hashed))
                self.peek(self._hashed, gap)
                self._digest.update(gap)
                self._hashed = offset
            self._digest.update(out[self._hashed - offset :])
            self._hashed = end

    def peek(self, offset: int, out: memoryview) -> None:
        """As `read`, without hashing."""
        if self._file is None:
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115  (closed by `close`)
        done = 0
        while done < len(out):
            count = _read_at(self._file, out[done:], offset + done)
            if count == 0:
                raise DataError(f"{self.path}: the file is cut off after {offset + done:,} bytes")
            done += count

    def digest(self) -> str:
        """Hash of the whole file, as `provenance.hash_file` gives it; what was not read in order is read now."""
        size = self.path.stat().st_size
        buffer = memoryview(bytearray(1 << 20))
        while self._hashed < size:
            part = buffer[: min(len(buffer), size - self._hashed)]
            self.peek(self._hashed, part)
            self._digest.update(part)
            self._hashed += len(part)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file; it opens again when it is read."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _read_at(file: io.FileIO, out: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):  # in one call, and without a copy
        return os.preadv(file.fileno(), [out], offset)
    file.seek(offset)
    return file.readinto(out) or 0


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor in a safetensors file.

    Attributes:
        file: The file.
        dtype: Type of its numbers.
        shape: Its shape.
        start: Its first byte in the file.
    """

    file: WeightsFile
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def read(self, first: int, out: Floats) -> None:
        """See `Tensor`."""
        width = ITEM_BYTES[self.dtype]
        if first + len(out) > math.prod(self.shape):
            raise IndexError(f"values {first} to {first + len(out)} of a tensor of shape {self.shape}")
        if self.dtype == "F32":
            self.file.read(self.start + first * width, out.data.cast("B"))
        elif self.dtype == "F64":
            double = np.empty(len(out), np.float64)
            self.file.read(self.start + first * width, double.data.cast("B"))
            out[:] = double
        else:
            raw = np.empty(len(out), np.uint16)
            self.file.read(self.start + first * width, raw.data.cast("B"))
            widen(raw, self.dtype, out)

    def content(self) -> bytes:
        """See `Tensor`."""
        raw = bytearray(self.size)
        self.file.read(self.start, memoryview(raw))
        return bytes(raw)


@dataclass(frozen=True, slots=True)
class ArrayTensor:
    """A tensor in memory, or mapped into it.

    Attributes:
        values: The flattened numbers; bfloat16 as the uint16 that hold its bits.
        dtype: Type of its numbers.
        shape: Its shape.
    """

    values: NDArray[np.generic]
    dtype: str
    shape: tuple[int, ...]

    def read(self, first: int, out: Floats) -> None:
        """See `Tensor`."""
        part = self.values[first : first + len(out)]
        if self.dtype == "F32":
            out[:] = part
        else:
            widen(part.view(np.uint16), self.dtype, out)

    def content(self) -> bytes:
        """See `Tensor`."""
        return self.values.tobytes()


@dataclass(frozen=True, slots=True)
class AsType:
    """A tensor that is written in another type than it is read in.

    Attributes:
        tensor: What is read.
        dtype: The type that it counts as.
    """

    tensor: Tensor
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Tensor`."""
        return self.tensor.shape

    def read(self, first: int, out: Floats) -> None:
        """See `Tensor`."""
        self.tensor.read(first, out)

    def content(self) -> bytes:
        """See `Tensor`."""
        return self.tensor.content()


def widen(raw: NDArray[np.uint16], dtype: str, out: Floats) -> None:
    """Bits of float16 or bfloat16 numbers as float32."""
    if dtype == "F16":
        out[:] = raw.view(np.float16)
    else:
        # a bfloat16 is the upper half of a float32
        np.left_shift(raw, 16, out=out.view(np.uint32), dtype=np.uint32)


def to_bytes(values: Floats, dtype: str) -> memoryview:
    """Float32 values, shape (values,), as the bytes of another type, rounded to nearest even."""
    if dtype == "F16":
        return values.astype(np.float16).data.cast("B")
    if dtype == "BF16":
        bits = values.view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return (rounded >> np.uint32(16)).astype(np.uint16).data.cast("B")
    return values.data.cast("B")


LARGEST_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says of itself.

    Attributes:
        tensors: By name, in order of place.
        metadata: Free text by name; tied tensors stand here as name of the left-out one: name of the other.
    """

    tensors: dict[str, FileTensor]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Return the tensors of a safetensors file, every claim of the header checked.

    Raises:
        DataError: The file is truncated, or its header is broken or contradicts itself.
    """
    size = path.stat().st_size
    file = WeightsFile(path)
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little") if size >= 8 else 0
        if not 2 <= length <= min(size - 8, LARGEST_HEADER):
            raise DataError(f"{path}: not a safetensors file, or cut off ({size} bytes, header of {length})")
        try:
            header = json.loads(stream.read(length), object_pairs_hook=_without_twins)
            metadata = {str(name): str(text) for name, text in header.pop("__metadata__", {}).items()}
            entries = [(name, _tensor(file, name, entry, 8 + length)) for name, entry in header.items()]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{path}: broken safetensors header: {error}") from None
    entries.sort(key=lambda one: (one[1].start, one[1].size))
    place = 8 + length
    for name, tensor in entries:
        if tensor.start != place:
            raise DataError(f"{path}: tensor '{name}' overlaps another or leaves a gap before it")
        place += tensor.size
    if place != size:
        raise DataError(f"{path}: {size} bytes, but its header speaks of {place}; the file is cut off or damaged")
    return Header(dict(entries), metadata)


def header_bytes(tensors: list[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str] | None = None) -> bytes:
    """Return the header of a safetensors file.

    Args:
        tensors: Name, dtype and shape of each, in order of place.
        metadata: Free text by name; ``format`` is always there, because transformers wants it.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    place = 0
    for name, dtype, shape in tensors:
        size = math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    # readers want the data to begin at a multiple of 8
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def check_name(name: object) -> None:
    """Refuse a name that is none: no text, a path, a reserved word, what can't be written again.

    Raises:
        ValueError: It is such a name.
    """
    if not isinstance(name, str) or not name or name.startswith(("/", "__")) or "\0" in name or ".." in name.split("/"):
        raise ValueError(f"{name!r} is no name of a tensor")
    name.encode()  # a lone surrogate is an error here


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name stands twice")
    return values


def _tensor(file: WeightsFile, name: str, entry: Any, data: int) -> FileTensor:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (start, end, *shape))
    if not whole or min(start, *shape, 0) < 0 or len(shape) > 64:
        raise ValueError(f"{name!r} has offsets {start} to {end} and shape {list(shape)}")
    if entry["dtype"] not in ITEM_BYTES:
        raise ValueError(f"'{name}' is of type {entry['dtype']}; this can be merged: {', '.join(ITEM_BYTES)}")
    if end - start != math.prod(shape) * ITEM_BYTES[entry["dtype"]]:
        raise ValueError(f"'{name}' has offsets {start} to {end} for shape {list(shape)} of {entry['dtype']}")
    check_name(name)
    return FileTensor(file, entry["dtype"], shape, data + start)
