"""LoRA adapters, folded into their base while it is read (arXiv:2106.09685)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bge_cocktail.errors import DataError
from bge_cocktail.layout import read_object
from bge_cocktail.merging.checkpoints import Checkpoint, weight_files
from bge_cocktail.merging.safetensors_file import read_header
from bge_cocktail.merging.tensors import FLOATS, Floats, Key, Tensor, count_of
from bge_cocktail.provenance import hash_path

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
PART = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")


@dataclass(frozen=True, slots=True)
class LowRankTensor:
    """A matrix plus a product of two thin ones, computed for the rows that are asked for.

    Attributes:
        base: The matrix, of the base.
        up: Shape (rows, rank).
        down: Shape (rank, columns), already multiplied by the adapter's scale.
    """

    base: Tensor
    up: Floats
    down: Floats

    @property
    def dtype(self) -> str:
        """See `Tensor`."""
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Tensor`."""
        return self.base.shape

    def read(self, first: int, out: Floats) -> None:
        """See `Tensor`."""
        self.base.read(first, out)
        columns = self.down.shape[1]
        top, bottom = first // columns, -(-(first + len(out)) // columns)
        change = (self.up[top:bottom] @ self.down).reshape(-1)
        out += change[first - top * columns :][: len(out)]

    def content(self) -> bytes:
        """See `Tensor`."""
        return self.base.content()


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return (folder / CONFIG).is_file() and not weight_files(folder)


def base_of(folder: Path) -> str:
    """The model that an adapter was trained on, as its configuration names it.

    Raises:
        DataError: It names none.
    """
    name = read_object(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise DataError(f"{folder / CONFIG}: names no base (base_model_name_or_path)")
    return str(name)


def fold_adapter(name: str, folder: Path, base: Checkpoint) -> Checkpoint:
    """An adapter and its base as one model.

    Raises:
        DataError: The adapter is of another kind than LoRA, or doesn't fit the base.
    """
    config = read_object(folder / CONFIG)
    if (folder / "modules.json").is_file():
        raise DataError(
            f"{folder}: an adapter beside modules of its own can't be folded in; load it with sentence-transformers, "
            "merge the adapter there (merge_and_unload) and save the model"
        )
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        kind = "DoRA" if config.get("use_dora") else config.get("peft_type")
        raise DataError(f"{folder / CONFIG}: adapters of kind {kind} can't be folded in, only LoRA")
    if not (folder / WEIGHTS).is_file():
        raise DataError(f"{folder / WEIGHTS} is missing (adapters in .bin files: save them as safetensors)")
    header = read_header(folder / WEIGHTS).tensors
    tensors = dict(base.tensors)
    added: list[Key] = []
    halves: dict[str, dict[str, Floats]] = {}
    for full, tensor in header.items():
        if tensor.dtype not in FLOATS:
            raise DataError(f"{folder / WEIGHTS}: '{full}' is of type {tensor.dtype}, expected {', '.join(FLOATS)}")
        short = full.removeprefix(PREFIX).replace(".base_layer.", ".")
        if match := PART.fullmatch(short):
            values = np.empty(count_of(tensor), np.float32)
            tensor.read(0, values)
            if len(tensor.shape) != 2:
                raise DataError(f"{folder / WEIGHTS}: '{full}' has shape {list(tensor.shape)}; only matrices fold in")
            halves.setdefault(match[1], {})[(match[2] or "") + match[3]] = values.reshape(tensor.shape)
        else:
            # biases, and modules that were trained whole, stand in place of the base's
            key = _find(short, base) or (0, short)
            if key not in base.tensors:
                if not any(part in short.split(".") for part in config.get("modules_to_save") or []):
                    raise DataError(f"{folder / WEIGHTS}: the base {base.name} has no tensor '{short}'")
                added.append(key)
            tensors[key] = tensor
    for target, pair in halves.items():
        found = _find(f"{target}.weight", base)
        if found is None:
            raise DataError(f"{folder}: the base {base.name} has no tensor '{target}.weight' for the adapter")
        key = found
        up, down = _factors(folder, target, pair, config)
        if base.tensors[key].shape != (up.shape[0], down.shape[1]):
            wanted = list(base.tensors[key].shape)
            raise DataError(f"{folder}: '{target}' is for shape {[up.shape[0], down.shape[1]]}, the base has {wanted}")
        tensors[key] = LowRankTensor(base.tensors[key], up, down)
    if not halves:
        raise DataError(f"{folder / WEIGHTS}: holds no LoRA matrices")
    files = dict(base.files)
    first = next(iter(files))
    files[first] += tuple(added)
    return replace(
        base,
        name=name,
        files=files,
        tensors=tensors,
        sources=(next(iter(header.values())).file,),
        parts=(base,),
        made={"adapter": hash_path(folder)},
        origins=(folder,),
    )


def _find(name: str, base: Checkpoint) -> Key | None:
    """The base's tensor of that name, which may stand behind a prefix of its own (``bert.``)."""
    if (0, name) in base.tensors:
        return (0, name)
    behind = [key for key in base.tensors if key[0] == 0 and key[1].endswith("." + name)]
    return behind[0] if len(behind) == 1 else None


def _factors(folder: Path, target: str, pair: dict[str, Floats], config: dict[str, Any]) -> tuple[Floats, Floats]:
    """The thin matrices, such that their product is what the adapter adds."""
    embedding = "embedding_A" in pair
    try:
        a, b = (pair["embedding_A"], pair["embedding_B"]) if embedding else (pair["A"], pair["B"])
    except KeyError:
        raise DataError(f"{folder / WEIGHTS}: '{target}' has but one of its two matrices") from None
    rank = a.shape[0]
    if b.shape[1] != rank or not rank:
        raise DataError(f"{folder / WEIGHTS}: the matrices of '{target}' are {list(a.shape)} and {list(b.shape)}")
    try:
        patterns = (config.get("alpha_pattern") or {}).items()
        # of several patterns that match, PEFT takes the first
        found = (value for pattern, value in patterns if re.fullmatch(rf"(.*\.)?({pattern})", target))
        alpha = float(next(found, config.get("lora_alpha", rank)) or 0)
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise DataError(
            f"{folder / CONFIG}: 'lora_alpha' or 'alpha_pattern' is not what it should be: {error}"
        ) from None
    scale = np.float32(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    if embedding or config.get("fan_in_fan_out"):
        return np.ascontiguousarray(a.T), np.ascontiguousarray(b.T) * scale
    return b, a * scale
