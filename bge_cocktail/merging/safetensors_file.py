"""The safetensors format: reading a header and believing none of it, and writing one."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_cocktail.errors import DataError
from bge_cocktail.merging.tensors import ITEM_BYTES, FileTensor, WeightsFile

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
    """The tensors of a safetensors file, every claim of the header checked.

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
    """The header of a safetensors file.

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
