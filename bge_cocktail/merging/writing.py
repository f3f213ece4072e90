"""A merged model as a folder: weights tile by tile, and all that stands beside them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bge_cocktail.errors import DataError
from bge_cocktail.layout import make_portable, read_json, transformer_folder
from bge_cocktail.merging.checkpoints import Checkpoint, is_unused
from bge_cocktail.merging.plan import Plan
from bge_cocktail.merging.safetensors_file import header_bytes
from bge_cocktail.merging.settings import take_length, take_prompts, take_tokenizer
from bge_cocktail.merging.tensors import FLOATS, ITEM_BYTES, Key, Tensor, count_of, to_bytes
from bge_cocktail.options import Merging
from bge_cocktail.provenance import NOT_THE_MODEL, write_json

LARGEST_FLOAT16 = 65504
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
WEIGHTS = (".safetensors", ".bin", ".onnx", ".pt", ".pth", ".h5", ".msgpack", ".ot", ".gguf")


def write_model(plan: Plan, folder: Path, advance: Callable[[int], None] = lambda _: None) -> None:
    """Write the result of a merge.

    Args:
        plan: The merge.
        folder: An empty folder.
        advance: Told the bytes that are written.

    Raises:
        DataError: NaN or infinite values, or such as the type of the output can't hold.
    """
    first = plan.checkpoints[0]
    _copy_other_files(first, folder)
    _settle(plan, folder)
    for file in first.files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb", buffering=0) as stream:
            for content in contents(plan, file):
                stream.write(content)
                advance(len(content))
    if (folder / "modules.json").is_file():
        make_portable(folder)


def contents(plan: Plan, file: str) -> Iterator[bytes | memoryview]:
    """The bytes of one of the weight files, header first."""
    first = plan.checkpoints[0]
    keys = first.files[file]
    outputs = [(key[1], out_dtype(first.tensors[key], plan.options), first.tensors[key].shape) for key in keys]
    yield header_bytes(outputs, first.metadata.get(file))
    for key, (_, dtype, _) in zip(keys, outputs, strict=True):
        if dtype not in FLOATS:
            yield plan.content(key)
            continue
        for tile in plan.tiles(key):
            if dtype == "F16" and np.abs(tile).max(initial=0) > LARGEST_FLOAT16:
                raise DataError(f"tensor '{key[1]}' holds values beyond float16 (65504); use bfloat16 or float32")
            yield to_bytes(tile, dtype)


def out_dtype(tensor: Tensor, options: Merging) -> str:
    """The type that a tensor is written in."""
    return tensor.dtype if options.dtype == "same" or tensor.dtype not in FLOATS else DTYPES[options.dtype]


def output_bytes(first: Checkpoint, options: Merging) -> int:
    """Bytes of weights that a merge writes."""
    return sum(count_of(one) * ITEM_BYTES[out_dtype(one, options)] for one in first.tensors.values())


def written_keys(first: Checkpoint) -> list[Key]:
    """The tensors that are written, in their order."""
    return [key for keys in first.files.values() for key in keys]


def _copy_other_files(first: Checkpoint, new: Path) -> None:
    for path in sorted(first.folder.rglob("*")):
        relative = path.relative_to(first.folder)
        weights = path.suffix in WEIGHTS or path.name.endswith(".index.json")
        if path.is_file() and not weights and path.name not in NOT_THE_MODEL and not is_unused(relative):
            (new / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, new / relative)
        elif path.is_dir() and (first.folder / "modules.json").is_file() and not is_unused(relative):
            (new / relative).mkdir(parents=True, exist_ok=True)
    for file in first.files:
        place = Path(file).parent
        index = first.folder / place / "model.safetensors.index.json"
        # an index of shards is copied only where the shards are written under the same names
        if index.is_file() and set(read_json(index).get("weight_map", {}).values()) <= {
            Path(one).name for one in first.files
        }:
            (new / place).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(index, new / place / index.name)


def _settle(plan: Plan, new: Path) -> None:
    """Prompts, length, tokenizer and type as chosen, where they are not simply the first model's."""
    first, options = plan.checkpoints[0], plan.options

    def chosen(number: int | None) -> Checkpoint:
        return plan.checkpoints[number - 1] if number else first

    prompts, length = chosen(options.prompts_from), chosen(options.length_from)
    tokenizer = chosen(options.tokenizer_from)
    if (source := prompts.prompts_of or prompts.folder) != first.folder:
        take_prompts(new, source)
    if (source := length.length_of or length.folder) != first.folder:
        take_length(new, source)
    if (source := tokenizer.tokenizer_of or tokenizer.folder) != first.folder:
        take_tokenizer(new, source)
    if options.dtype != "same":
        path = transformer_folder(new) / "config.json"
        config = read_json(path)
        write_json(path, {**config, "torch_dtype" if "torch_dtype" in config else "dtype": options.dtype})
