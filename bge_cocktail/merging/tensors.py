"""Tensors that are read in tiles as float32, wherever they lie: in a safetensors file, in memory, under an adapter."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from bge_cocktail.errors import DataError

Floats = NDArray[np.float32]
Key = tuple[int, str]
"""Number of the module in its model, and name of the tensor in that module."""

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8"), 1),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("I64", "U64"), 8),
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
        """All its bytes, little-endian; for tensors of whole numbers, which are small."""
        ...


def count_of(tensor: Tensor) -> int:
    """How many numbers a tensor has."""
    return math.prod(tensor.shape)


class WeightsFile:
    """A file of weights that is read in parts, and hashed in the same pass as far as it is read in order.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
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
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        done = 0
        while done < len(out):
            count = os.preadv(self._descriptor, [out[done:]], offset + done)
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
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


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
