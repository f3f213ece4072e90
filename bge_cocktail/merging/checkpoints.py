"""The tensors of a model, found in whatever files it keeps them (safetensors, pickles, LoRA); none is loaded."""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bge_cocktail.core.errors import DataError
from bge_cocktail.core.outputs import read_object
from bge_cocktail.core.runs import files_under, hash_path, hash_value
from bge_cocktail.merging.tensors import (
    FLOATS,
    ArrayTensor,
    AsType,
    Floats,
    Key,
    Tensor,
    WeightsFile,
    check_name,
    count_of,
    read_header,
)
from bge_cocktail.models.layout import modules_of

SHARDS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
PICKLES = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
SAMPLE = 64


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of a model.

    Attributes:
        name: How the user called the model.
        folder: The folder of its configuration and tokenizer.
        files: Weight files that a model of its form is written to, as paths within its folder, with the tensors of each
            in order of place.
        tensors: All tensors by (number of the module, name): folders of modules may be called otherwise elsewhere.
        metadata: The free text in the header of a file, by file.
        aliases: Tensors that are kept under another name too (tied weights), by the name left out.
        sources: The files that are read.
        parts: The models that it is made of, if it isn't simply read: an adapter's base, the models of a merge.
        made: How it is made of them, as JSON.
        found: The weights of a merge and what led to them, if it is one.
        origins: The folders that the user named, which no output may replace.
        prompts_of: The folder whose prompts count, if not its own.
        length_of: The folder whose longest text length counts, if not its own.
        tokenizer_of: The folder whose tokenizer counts, if not its own.
    """

    name: str
    folder: Path
    files: Mapping[str, tuple[Key, ...]]
    tensors: Mapping[Key, Tensor]
    metadata: Mapping[str, dict[str, str]] = field(default_factory=dict)
    aliases: Mapping[Key, Key] = field(default_factory=dict)
    sources: tuple[WeightsFile, ...] = ()
    parts: tuple[Checkpoint, ...] = ()
    made: Any = None
    found: Any = None
    origins: tuple[Path, ...] = ()
    prompts_of: Path | None = None
    length_of: Path | None = None
    tokenizer_of: Path | None = None


def read_checkpoint(name: str, folder: Path) -> Checkpoint:
    """Find the tensors of a sentence-transformers folder, or of a transformers folder.

    Args:
        name: How the user called it.
        folder: The folder.

    Raises:
        DataError: No weights, or a broken file.
    """
    modules = modules_of(folder) if (folder / "modules.json").is_file() else [("Transformer", folder)]
    files: dict[str, tuple[Key, ...]] = {}
    tensors: dict[Key, Tensor] = {}
    metadata: dict[str, dict[str, str]] = {}
    aliases: dict[Key, Key] = {}
    sources: list[WeightsFile] = []
    seen: set[Path] = set()
    places: set[Path] = set()
    for number, (kind, path) in enumerate(modules):
        # a module without weights may share the folder of another
        weights = [] if path in places and kind != "Transformer" else weight_files(path)
        places.add(path)
        seen.update(weights)
        if not weights and kind == "Transformer":
            raise DataError(
                f"{path}: no .safetensors or pytorch_model.bin file here; is {folder} a whole model folder?"
            )
        for file in weights:
            if file.suffix == ".safetensors":
                header = read_header(file)
                here: Mapping[str, Tensor] = header.tensors
                tied = {one: other for one, other in header.metadata.items() if other in here and one not in here}
                notes = header.metadata
                if header.tensors:
                    sources.append(next(iter(header.tensors.values())).file)
            else:
                here, tied = read_pickle(file)
                notes = {}
            for tensor_name, tensor in here.items():
                if (number, tensor_name) in tensors:
                    raise DataError(f"{file}: tensor '{tensor_name}' stands in another file of the model too")
                # as loaders that embed have them, too
                tensors[number, tensor_name] = AsType(tensor, "F32") if tensor.dtype == "F64" else tensor
            aliases |= {(number, one): (number, other) for one, other in tied.items()}
            target = file if file.suffix == ".safetensors" else path / "model.safetensors"
            relative = target.relative_to(folder).as_posix()
            keys = files.get(relative, ()) + tuple((number, tensor_name) for tensor_name in here)
            files[relative] = keys
            metadata.setdefault(relative, {}).update(notes)
    _refuse_strays(folder, seen)
    return Checkpoint(name, folder, files, tensors, metadata, aliases, tuple(sources), origins=(folder,))


def weight_files(path: Path) -> list[Path]:
    """Return the weight files of a module's folder: safetensors, or else PyTorch's own.

    Raises:
        DataError: The index of shards names files that aren't there, or lie elsewhere.
    """
    if not path.is_dir():
        return []
    for index, pattern in (("model.safetensors.index.json", SHARDS), ("pytorch_model.bin.index.json", PICKLES)):
        # what the index names counts; beside it there may be the same weights in another cut
        if (path / index).is_file():
            named = _shards_of(path / index)
            if named:
                return named
        files = sorted(file for file in path.iterdir() if pattern.fullmatch(file.name))
        single = [file for file in files if "-of-" not in file.name]
        if files and not single and len(files) != int(files[0].stem.rpartition("-of-")[2]):
            raise DataError(
                f"{path}: {len(files)} shards are here, {files[0].name} speaks of more; is the model whole?"
            )
        if files:
            return single or files
    return []


def _shards_of(index: Path) -> list[Path]:
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict):
        raise DataError(f"{index}: expected an object with 'weight_map'")
    names = sorted({str(name) for name in places.values()})
    for name in names:
        if Path(name).name != name:
            raise DataError(f"{index}: the file name {name!r} leads out of the folder")
        if not (index.parent / name).is_file():
            raise DataError(f"{index}: its file {name} is missing; is the model whole?")
    return [index.parent / name for name in names]


def _refuse_strays(folder: Path, seen: set[Path]) -> None:
    """Weights that no module owns would be lost: a Router's routes, a module of another kind."""
    inside = {folder, *(file.parent for file in seen)}
    strays = [
        file.relative_to(folder).as_posix()
        for file in files_under(folder)
        if file.suffix in (".safetensors", ".bin", ".pt", ".pth")
        and file.parent not in inside
        and not is_unused(file.relative_to(folder))
    ]
    if strays:
        raise DataError(f"{folder}: no module owns {', '.join(strays)}; such a model (a Router?) can't be merged")


def is_unused(path: Path) -> bool:
    """Whether a path within a model folder belongs to something else: an export, or checkpoints of a training."""
    return path.parts[0] in ("onnx", "openvino", ".cache", ".git") or path.parts[0].startswith("checkpoint")


def hash_of(checkpoint: Checkpoint) -> str:
    """Hash of what a model holds; of a folder the same as `hash_path`, without reading it again."""
    if checkpoint.made is None:
        return hash_path(checkpoint.folder, {file.path: file.digest for file in checkpoint.sources})
    return hash_value([checkpoint.made, *(hash_of(part) for part in checkpoint.parts)])


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a quick name of a model's weights, from a few numbers of each tensor.

    It orders the models of a merge and seeds their random numbers, so that neither depends on the order of arguments.
    """
    if checkpoint.made is not None:
        return hash_value([checkpoint.made, *(fingerprint(part) for part in checkpoint.parts)])
    seen = []
    for key, tensor in sorted(checkpoint.tensors.items()):
        if tensor.dtype in FLOATS:
            count = count_of(tensor)
            sample = np.zeros(min(SAMPLE, count), np.float32)
            tensor.read((count - len(sample)) // 2, sample)
            seen.append((key, sample.tobytes().hex()))
    return hash_value(seen)


def close(checkpoint: Checkpoint) -> None:
    """Close the files of a model and of its parts."""
    for file in checkpoint.sources:
        file.close()
    for part in checkpoint.parts:
        close(part)


# whatever the unpickler meets in a damaged file
BROKEN = (
    *(RuntimeError, ValueError, EOFError, LookupError, AttributeError, TypeError, AssertionError, ArithmeticError),
    *(pickle.UnpicklingError, struct.error),
)


def read_pickle(path: Path) -> tuple[dict[str, ArrayTensor], dict[str, str]]:
    """Return the tensors of a PyTorch file, mapped into memory and not loaded.

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
        torch.float64: "F32",
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
        if tensor.dtype == torch.float64:
            tensor = tensor.to(torch.float32)
        flat = tensor.detach().resolve_neg().contiguous().flatten()
        values = flat.view(torch.uint16) if tensor.dtype == torch.bfloat16 else flat
        tensors[name] = ArrayTensor(values.numpy(), dtypes[tensor.dtype], tuple(tensor.shape))
    return tensors, tied


def _is_zip(path: Path) -> bool:
    """Return whether the file is of the newer kind, which alone can be mapped."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


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
    """Return whether a folder holds an adapter and not a whole model."""
    return (folder / CONFIG).is_file() and not weight_files(folder)


def base_of(folder: Path) -> str:
    """Return the model that an adapter was trained on, as its configuration names it.

    Raises:
        DataError: It names none.
    """
    name = read_object(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise DataError(f"{folder / CONFIG}: names no base (base_model_name_or_path)")
    return str(name)


def fold_adapter(name: str, folder: Path, base: Checkpoint) -> Checkpoint:
    """Return an adapter and its base as one model.

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
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(("pissa", "olora", "loftq", "corda", "lora_ga")):
        raise DataError(
            f"{folder / CONFIG}: adapters that begin as {start} change the base too; fold it in with peft "
            "(merge_and_unload), save the model, and merge that folder"
        )
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
                    raise DataError(
                        f"{folder / WEIGHTS}: the base {base.name} has no tensor '{short}'; if it is of this base, "
                        "fold the adapter in with peft (merge_and_unload) and merge the folder that this gives"
                    )
                added.append(key)
            elif base.tensors[key].shape != tensor.shape:
                raise DataError(
                    f"{folder / WEIGHTS}: '{short}' has shape {list(tensor.shape)}, in the base {base.name} "
                    f"{list(base.tensors[key].shape)}; where tokens were added, merge the adapter with peft "
                    "(merge_and_unload), save model and tokenizer, and merge that folder"
                )
            tensors[key] = tensor
    for target, pair in halves.items():
        tensor_name = _find(f"{target}.weight", base)
        if tensor_name is None:
            raise DataError(f"{folder}: the base {base.name} has no tensor '{target}.weight' for the adapter")
        key = tensor_name
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
    """Return the base's tensor of that name, which may stand behind a prefix of its own (``bert.``)."""
    if (0, name) in base.tensors:
        return (0, name)
    behind = [key for key in base.tensors if key[0] == 0 and key[1].endswith("." + name)]
    return behind[0] if len(behind) == 1 else None


def _factors(folder: Path, target: str, pair: dict[str, Floats], config: dict[str, Any]) -> tuple[Floats, Floats]:
    """Return the thin matrices, such that their product is what the adapter adds."""
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
        values = (value for pattern, value in patterns if re.fullmatch(rf"(.*\.)?({pattern})", target))
        alpha = float(next(values, config.get("lora_alpha", rank)) or 0)
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise DataError(
            f"{folder / CONFIG}: 'lora_alpha' or 'alpha_pattern' is not what it should be: {error}"
        ) from None
    scale = np.float32(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    if embedding or config.get("fan_in_fan_out"):
        return np.ascontiguousarray(a.T), np.ascontiguousarray(b.T) * scale
    return b, a * scale
