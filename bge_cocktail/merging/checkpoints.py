"""The tensors of a model, found in whatever files it keeps them; no tensor is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bge_cocktail.errors import DataError
from bge_cocktail.layout import modules_of, read_object
from bge_cocktail.merging.safetensors_file import read_header
from bge_cocktail.merging.tensors import FLOATS, Key, Tensor, WeightsFile, count_of
from bge_cocktail.provenance import hash_path, hash_value

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
        found = [] if path in places and kind != "Transformer" else weight_files(path)
        places.add(path)
        seen.update(found)
        if not found and kind == "Transformer":
            raise DataError(
                f"{path}: no .safetensors or pytorch_model.bin file here; is {folder} a whole model folder?"
            )
        for file in found:
            if file.suffix == ".safetensors":
                header = read_header(file)
                here: Mapping[str, Tensor] = header.tensors
                tied = {one: other for one, other in header.metadata.items() if other in here and one not in here}
                notes = header.metadata
                if header.tensors:
                    sources.append(next(iter(header.tensors.values())).file)
            else:
                from bge_cocktail.merging.pickles import read_pickle

                here, tied = read_pickle(file)
                notes = {}
            for tensor_name, tensor in here.items():
                if (number, tensor_name) in tensors:
                    raise DataError(f"{file}: tensor '{tensor_name}' stands in another file of the model too")
                tensors[number, tensor_name] = tensor
            aliases |= {(number, one): (number, other) for one, other in tied.items()}
            target = file if file.suffix == ".safetensors" else path / "model.safetensors"
            relative = target.relative_to(folder).as_posix()
            keys = files.get(relative, ()) + tuple((number, tensor_name) for tensor_name in here)
            files[relative] = keys
            metadata.setdefault(relative, {}).update(notes)
    _refuse_strays(folder, seen)
    return Checkpoint(name, folder, files, tensors, metadata, aliases, tuple(sources), origins=(folder,))


def weight_files(path: Path) -> list[Path]:
    """The weight files of a module's folder: safetensors, or else PyTorch's own.

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
        found = sorted(file for file in path.iterdir() if pattern.fullmatch(file.name))
        single = [file for file in found if "-of-" not in file.name]
        if found and not single and len(found) != int(found[0].stem.rpartition("-of-")[2]):
            raise DataError(
                f"{path}: {len(found)} shards are here, {found[0].name} speaks of more; is the model whole?"
            )
        if found:
            return single or found
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
        for file in sorted(folder.rglob("*"))
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
    """Hash of what a model holds; of a folder the same as `provenance.hash_path`, without reading it again."""
    if checkpoint.made is None:
        return hash_path(checkpoint.folder, {file.path: file.digest for file in checkpoint.sources})
    return hash_value([checkpoint.made, *(hash_of(part) for part in checkpoint.parts)])


def fingerprint(checkpoint: Checkpoint) -> str:
    """A quick name of a model's weights, from a few numbers of each tensor.

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
