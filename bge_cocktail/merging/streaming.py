"""Merge model folders into a new one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bge_cocktail.errors import DataError, UsageError
from bge_cocktail.hub import model_folder
from bge_cocktail.layout import make_portable, refuse_unportable
from bge_cocktail.merging.checkpoints import (
    FLOATS,
    Checkpoint,
    Reader,
    Tensor,
    header_bytes,
    is_unused,
    open_checkpoint,
    to_bytes,
)
from bge_cocktail.merging.checks import check_same_shape
from bge_cocktail.merging.methods import MergeMethod, merge_methods
from bge_cocktail.merging.weights import cocktail_weights, given_weights
from bge_cocktail.options import Merging
from bge_cocktail.progress import progress
from bge_cocktail.provenance import (
    NOT_THE_MODEL,
    RUN_FILE,
    describe_run,
    hash_path,
    new_folder,
    refuse_to_replace,
    require_space,
    write_json,
)

TILE = 1 << 18
LARGEST_FLOAT16 = 65504
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge gave.

    Attributes:
        folder: The merged model.
        models: The models, as they were named.
        weights: The weight of each, of sum 1.
        losses: The loss of each on the examples, where weights came from losses.
    """

    folder: Path
    models: tuple[str, ...]
    weights: tuple[float, ...]
    losses: tuple[float, ...] = ()


def merge(
    models: Sequence[str | Path],
    output: Path,
    options: Merging | None = None,
    *,
    loss: Callable[[str], float] | None = None,
    more_inputs: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Merged:
    """Merge models of the same shape.

    Weights are streamed in tiles: memory doesn't grow with the size or number of models, and torch isn't
    imported. The tokenizer, prompts and configuration come from the first model.

    Args:
        models: Folders or hub names.
        output: The folder to write, in the portable layout.
        options: Method and weights.
        loss: The loss of a model on a few examples; needed for weights ``cocktail``.
        more_inputs: What else the result depends on (the examples), by name and hash, for run.json.
        overwrite: Replace an older output of this tool.

    Raises:
        UsageError: Weights that don't fit, an output that exists or is an input.
        DataError: Models that don't fit together; the message lists what differs.
    """
    options = options or Merging()
    started = time.monotonic()
    names = tuple(str(model) for model in models)
    checkpoints = _checked(names, output, overwrite)
    method = merge_methods[options.method]
    weights, losses = find_weights(names, options, loss)
    sizes = output_bytes(checkpoints[0], options)
    require_space(output.parent, sizes)
    hashes = [hash_path(checkpoint.folder) for checkpoint in checkpoints]
    # a fixed order of summation, whatever the order of the arguments; models of weight 0 take no part
    order = sorted((row for row in range(len(names)) if weights[row] > 0), key=lambda row: hashes[row])
    chosen = [checkpoints[row] for row in order]
    shares = np.array([weights[row] for row in order])

    with new_folder(output, overwrite=overwrite) as new:
        _copy_other_files(checkpoints[0], new)
        with Reader() as reader, progress(f"merging {len(chosen)} models", sizes) as advance:
            for file in checkpoints[0].files:
                _merge_file(file, new / file, checkpoints[0], chosen, shares, method, options, reader, advance)
        if (new / "modules.json").is_file():
            make_portable(new)
        described: list[dict[str, Any]] = [
            {"model": name, "weight": weight} for name, weight in zip(names, weights, strict=True)
        ]
        for one, value in zip(described, losses, strict=False):
            one["loss"] = value
        write_json(
            new / RUN_FILE,
            describe_run(
                "merge",
                options=options.model_dump(mode="json"),
                inputs={**dict(zip(names, hashes, strict=True)), **(more_inputs or {})},
                seconds=time.monotonic() - started,
                models=described,
            ),
        )
    return Merged(output, names, tuple(weights), tuple(losses))


def plan_merge(
    models: Sequence[str | Path], output: Path, options: Merging, *, overwrite: bool = False
) -> dict[str, Any]:
    """What a merge would read and write; everything is checked but the numbers, and nothing is written.

    Raises:
        UsageError, DataError: As `merge` would.
    """
    names = tuple(str(model) for model in models)
    checkpoints = _checked(names, output, overwrite)
    read = sum(tensor.size for checkpoint in checkpoints for tensor in checkpoint.tensors.values())
    size = output_bytes(checkpoints[0], options)
    require_space(output.parent, size)
    merge_methods[options.method]
    known = options.weights != "cocktail"
    return {
        "models": ", ".join(names),
        "method": options.method,
        "weights": find_weights(names, options, None)[0] if known else "from the loss on the examples",
        "tensors": len(checkpoints[0].tensors),
        "megabytes_read": round(read / 1e6, 1),
        "megabytes_written": round(size / 1e6, 1),
        "buffer_megabytes": round(4 * TILE * (len(names) + 1) / 1e6, 1),
        "output": str(output),
    }


def _checked(names: Sequence[str], output: Path, overwrite: bool) -> list[Checkpoint]:
    """Open the models of a merge and refuse what can't be merged, or written."""
    checkpoints = open_models(names)
    refuse_to_replace(output, overwrite, [checkpoint.folder for checkpoint in checkpoints])
    check_same_shape(checkpoints)
    if (checkpoints[0].folder / "modules.json").is_file():
        refuse_unportable(checkpoints[0].folder)
    return checkpoints


def open_models(names: Sequence[str]) -> list[Checkpoint]:
    """Open the models of a merge.

    Raises:
        UsageError: Fewer than two.
    """
    if len(names) < 2:
        raise UsageError("a merge needs at least two models")
    return [open_checkpoint(name, model_folder(name)) for name in names]


def find_weights(
    names: Sequence[str], options: Merging, loss: Callable[[str], float] | None
) -> tuple[list[float], list[float]]:
    """The weight of each model, of sum 1, and the losses that led to them, if any."""
    rest = names if options.share is None else names[1:]
    losses: list[float] = []
    if options.weights == "cocktail":
        if loss is None:
            raise UsageError("weights 'cocktail' come from examples: give a file of records with --examples")
        losses = [loss(name) for name in names]
        weights = cocktail_weights(losses[len(names) - len(rest) :], options.temperature)
    elif options.weights == "uniform":
        weights = [1 / len(rest)] * len(rest)
    else:
        weights = given_weights(options.weights, len(rest))
    if options.share is not None:
        weights = [options.share, *((1 - options.share) * weight for weight in weights)]
    return weights, losses


def output_bytes(first: Checkpoint, options: Merging) -> int:
    """Bytes of weights that a merge writes."""
    return sum(
        tensor.count * {"F32": 4, "F16": 2, "BF16": 2}[_out_dtype(tensor, options)]
        if tensor.dtype in FLOATS
        else tensor.size
        for tensor in first.tensors.values()
    )


def _copy_other_files(first: Checkpoint, new: Path) -> None:
    for path in sorted(first.folder.rglob("*")):
        relative = path.relative_to(first.folder)
        weights = path.suffix in (".safetensors", ".bin", ".onnx", ".pt") or path.name.endswith(".index.json")
        if path.is_file() and not weights and path.name not in NOT_THE_MODEL and not is_unused(relative):
            (new / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, new / relative)
    # the index of shards; one of .bin files would point to nothing
    for place in first.places:
        index = first.folder / place / "model.safetensors.index.json"
        if index.is_file():
            (new / place).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(index, new / place / index.name)


def _out_dtype(tensor: Tensor, options: Merging) -> str:
    return tensor.dtype if options.dtype == "same" else DTYPES[options.dtype]


def _merge_file(
    name: str,
    path: Path,
    first: Checkpoint,
    chosen: Sequence[Checkpoint],
    weights: np.ndarray,
    method: MergeMethod,
    options: Merging,
    reader: Reader,
    advance: Callable[[int], None],
) -> None:
    keys = first.files[name]
    outputs = [
        (key[1], _out_dtype(tensor, options) if tensor.dtype in FLOATS else tensor.dtype, tensor.shape)
        for key in keys
        for tensor in [first.tensors[key]]
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = np.empty((len(chosen), TILE), np.float32)
    with open(path, "wb") as file:
        file.write(header_bytes(outputs))
        for key, (_, dtype, _) in zip(keys, outputs, strict=True):
            tensor = first.tensors[key]
            if tensor.dtype not in FLOATS:
                file.write(_equal_bytes(key, first, chosen, reader))
                advance(tensor.size)
                continue
            for start in range(0, tensor.count, TILE):
                count = min(TILE, tensor.count - start)
                for row, checkpoint in enumerate(chosen):
                    reader.read(checkpoint.tensors[key], start, buffer[row, :count])
                values = buffer[0, :count] if len(chosen) == 1 else method(buffer[:, :count], weights)
                if not np.isfinite(values.sum()):
                    _refuse_not_finite(key, chosen, start, count, reader)
                if dtype == "F16" and np.abs(values).max(initial=0) > LARGEST_FLOAT16:
                    raise DataError(f"tensor '{key[1]}' holds values beyond float16 (65504); use bfloat16 or float32")
                content = to_bytes(values, dtype)
                file.write(content)
                advance(len(content))


def _equal_bytes(key: tuple[int, str], first: Checkpoint, chosen: Sequence[Checkpoint], reader: Reader) -> bytes:
    """The bytes of a tensor of whole numbers, which can't be averaged and so must be the same in all models."""

    def content(tensor: Tensor) -> bytes:
        raw = bytearray(tensor.size)
        reader.read_bytes(tensor, 0, memoryview(raw))
        return bytes(raw)

    mine = content(first.tensors[key])
    for other in chosen:
        if key in other.tensors and content(other.tensors[key]) != mine:
            raise DataError(
                f"{first.name} and {other.name} can't be merged: '{key[1]}' ({first.tensors[key].dtype}) differs"
            )
    return mine


def _refuse_not_finite(
    key: tuple[int, str], chosen: Sequence[Checkpoint], start: int, count: int, reader: Reader
) -> None:
    values = np.empty(count, np.float32)
    for checkpoint in chosen:
        reader.read(checkpoint.tensors[key], start, values)
        if not np.isfinite(values).all():
            raise DataError(f"{checkpoint.name}: tensor '{key[1]}' holds NaN or infinite values")
