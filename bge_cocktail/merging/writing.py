"""A merged model as a folder: weights tile by tile, and all that stands beside them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bge_cocktail.errors import DataError
from bge_cocktail.labels import is_classifier
from bge_cocktail.layout import make_portable, read_object, transformer_folder
from bge_cocktail.merging.block_writer import BlockWriter
from bge_cocktail.merging.checkpoints import Checkpoint, is_unused
from bge_cocktail.merging.plan import Plan
from bge_cocktail.merging.safetensors_file import header_bytes
from bge_cocktail.merging.settings import forget_temperature, take_length, take_prompts, take_tokenizer
from bge_cocktail.merging.tensors import FLOATS, ITEM_BYTES, Key, Tensor, count_of, to_bytes
from bge_cocktail.options import Merging
from bge_cocktail.outputs import write_json
from bge_cocktail.provenance import NOT_THE_MODEL

LARGEST = {"F16": 65504.0, "BF16": 3.3895e38}
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
    write_settings(plan, folder)
    for file in first.files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = BlockWriter(path)
        try:
            for content in contents(plan, file):
                writer.write(content)
                advance(len(content))
        except BaseException:
            writer.abandon()
            raise
        writer.close()


def write_settings(plan: Plan, folder: Path) -> None:
    """Write all that is no weight: configuration, tokenizer, modules, prompts, the index of shards."""
    first = plan.checkpoints[0]
    _copy_other_files(first, folder)
    _settle(plan, folder)
    _write_indexes(plan, folder)
    if is_classifier(folder):
        forget_temperature(folder)
    elif (folder / "modules.json").is_file():
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
            if dtype != "F32" and np.abs(tile).max(initial=0) > LARGEST[dtype]:
                name = "float16" if dtype == "F16" else "bfloat16"
                raise DataError(
                    f"tensor '{key[1]}' holds values beyond {name} ({LARGEST[dtype]:g}); use a wider --dtype"
                )
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


def _write_indexes(plan: Plan, new: Path) -> None:
    """The index of shards, where a module has several."""
    first = plan.checkpoints[0]
    for place in {Path(file).parent: None for file in first.files}:
        shards = {file: keys for file, keys in first.files.items() if Path(file).parent == place}
        if len(shards) > 1:
            places = {name: Path(file).name for file, keys in shards.items() for _, name in keys}
            tensors = [first.tensors[key] for keys in shards.values() for key in keys]
            size = sum(count_of(one) * ITEM_BYTES[out_dtype(one, plan.options)] for one in tensors)
            (new / place).mkdir(parents=True, exist_ok=True)
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
            write_json(new / place / "model.safetensors.index.json", index)


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
        take_length(new, source, is_classifier(new))
    if (source := tokenizer.tokenizer_of or tokenizer.folder) != first.folder:
        take_tokenizer(new, source)
    path = transformer_folder(new) / "config.json"
    if options.dtype != "same" and path.is_file():
        config = read_object(path)
        write_json(path, {**config, "torch_dtype" if "torch_dtype" in config else "dtype": options.dtype})
