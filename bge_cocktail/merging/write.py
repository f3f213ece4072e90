"""A merged model as a folder: weights tile by tile past the page cache, and all that stands beside them."""

from __future__ import annotations

import errno
import json
import logging
import mmap
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence, Set
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from bge_cocktail.core.errors import DataError
from bge_cocktail.core.outputs import read_object, write_json
from bge_cocktail.core.runs import NOT_THE_MODEL, files_under
from bge_cocktail.core.version import __version__
from bge_cocktail.merging.checkpoints import Checkpoint, is_unused
from bge_cocktail.merging.plan import Plan
from bge_cocktail.merging.recipe import Recipe, to_toml
from bge_cocktail.merging.tensors import FLOATS, ITEM_BYTES, Key, Tensor, count_of, header_bytes, to_bytes
from bge_cocktail.merging.weights import WeightsResult
from bge_cocktail.models.card import shown_name
from bge_cocktail.models.folder import is_classifier
from bge_cocktail.models.layout import (
    CLASSIFIER_FILE,
    TOKENIZER_FILES,
    declared_length,
    make_portable,
    modules_of,
    tokenizer_length,
    transformer_folder,
)
from bge_cocktail.options import MergeOptions

BLOCK = 4 << 20
# what disks want writes to be a multiple of
SECTOR = 4096


class BlockWriter:
    """Writes a new file in large aligned blocks, directly to the disk where the file system can.

    Args:
        path: The file; it must not exist.
    """

    def __init__(self, path: Path) -> None:
        self._buffer = mmap.mmap(-1, BLOCK)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._size = 0
        self._file = _open(path)

    def write(self, content: bytes | memoryview) -> None:
        """Append some bytes."""
        rest = memoryview(content)
        self._size += len(rest)
        while rest:
            part = rest[: BLOCK - self._filled]
            self._view[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == BLOCK:
                self._flush(BLOCK)

    def close(self) -> None:
        """Write what is left and close the file."""
        try:
            if self._filled:
                # a last block of whole sectors, and then cut to what was asked for
                self._flush(-(-self._filled // SECTOR) * SECTOR)
                os.ftruncate(self._file, self._size)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the file as it is."""
        os.close(self._file)
        self._view.release()
        self._buffer.close()

    def _flush(self, count: int) -> None:
        done = 0
        while done < count:
            try:
                done += os.write(self._file, self._view[done:count])
            except OSError as error:
                if error.errno != errno.EINVAL or not _DIRECT:
                    raise
                import fcntl  # there is one where files can be opened so

                flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
                if not flags & _DIRECT:
                    raise
                # a file system that opens such files and can't write them
                fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~_DIRECT)
        self._filled = 0


_DIRECT: int = getattr(os, "O_DIRECT", 0)


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, flags | _DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL or not _DIRECT:
            raise
        path.unlink(missing_ok=True)
        return os.open(path, flags, 0o666)


log = logging.getLogger(__name__)
SETTINGS = "config_sentence_transformers.json"
LENGTH = "sentence_bert_config.json"


def take_prompts(folder: Path, source: Path) -> None:
    """Give a model the prompts of another, and which of them is the default."""
    theirs = read_object(source / SETTINGS) if (source / SETTINGS).is_file() else {}
    mine = read_object(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    prompts = {name: theirs.get(name) for name in ("prompts", "default_prompt_name")}
    write_json(folder / SETTINGS, {**mine, **prompts, "prompts": prompts["prompts"] or {}})


def take_length(folder: Path, source: Path, classifier: bool) -> None:
    """Give a model the longest text length of another; classifiers keep it elsewhere."""
    if classifier:
        _take_classifiers_length(folder, source)
        return
    path = transformer_folder(folder) / LENGTH
    mine = read_object(path) if path.is_file() else {}
    write_json(path, {**mine, "max_seq_length": declared_length(source)})


def take_tokenizer(folder: Path, source: Path) -> None:
    """Give a model the tokenizer files of another, in place of its own."""
    for name in TOKENIZER_FILES:
        (transformer_folder(folder) / name).unlink(missing_ok=True)
        if (transformer_folder(source) / name).is_file():
            shutil.copyfile(transformer_folder(source) / name, transformer_folder(folder) / name)


def _take_classifiers_length(folder: Path, source: Path) -> None:
    theirs = source / CLASSIFIER_FILE
    length = read_object(theirs).get("max_length") if theirs.is_file() else declared_length(source)
    length = length or tokenizer_length(source)
    for name, key in ((CLASSIFIER_FILE, "max_length"), ("tokenizer_config.json", "model_max_length")):
        if (folder / name).is_file() and length is not None:
            write_json(folder / name, {**read_object(folder / name), key: length})


def forget_temperature(folder: Path) -> None:
    """Take away what calibrates a classifier's probabilities: it was found for other weights."""
    path = folder / CLASSIFIER_FILE
    if path.is_file() and read_object(path).get("temperature", 1.0) != 1.0:
        log.warning("the first model's calibration (a temperature) doesn't hold for the merge and is left out")
        write_json(path, {**read_object(path), "temperature": 1.0})


LARGEST = {"F16": 65504.0, "BF16": 3.3895e38}
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
WEIGHTS = (".safetensors", ".bin", ".onnx", ".pt", ".pth", ".h5", ".msgpack", ".ot", ".gguf")
# all that a model folder needs beside its weights, and the terms that it comes under
NEEDED = (
    *(
        "*config.json",
        SETTINGS,
        "modules.json",
        CLASSIFIER_FILE,
        *TOKENIZER_FILES,
        *("vocab.*", "vocab-*", "*-vocab.*"),
        "*.model",
        "bpe.codes",
        "dict.txt",
    ),
    *("stopwords.txt", "chat_template*", "LICENSE*", "LICENCE*", "NOTICE*"),
)


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
    _copy_other_files(first, plan.checkpoints[1:], folder)
    _settle(plan, folder)
    _write_indexes(plan, folder)
    if is_classifier(folder):
        forget_temperature(folder)
    elif (folder / "modules.json").is_file():
        make_portable(folder)


def contents(plan: Plan, file: str) -> Iterator[bytes | memoryview]:
    """Yield the bytes of one of the weight files, header first."""
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
                    f"tensor '{key[1]}' holds values beyond {name} ({LARGEST[dtype]:g}); use a wider `dtype`"
                )
            yield to_bytes(tile, dtype)


def out_dtype(tensor: Tensor, options: MergeOptions) -> str:
    """Return the type that a tensor is written in."""
    return tensor.dtype if options.dtype == "same" or tensor.dtype not in FLOATS else DTYPES[options.dtype]


def output_bytes(first: Checkpoint, options: MergeOptions) -> int:
    """Bytes of weights that a merge writes."""
    return sum(count_of(tensor) * ITEM_BYTES[out_dtype(tensor, options)] for tensor in first.tensors.values())


def written_keys(first: Checkpoint) -> list[Key]:
    """Return the tensors that are written, in their order."""
    return [key for keys in first.files.values() for key in keys]


# what trainings leave beside a model
_STATES = frozenset(("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth"))


def _copy_other_files(first: Checkpoint, others: Sequence[Checkpoint], new: Path) -> None:
    """Copy what a model folder needs, from its root and its modules' folders; what is left out is said.

    Raises:
        DataError: A link leads out of the folder to a file that not everybody may read.
    """
    modules = modules_of(first.folder) if (first.folder / "modules.json").is_file() else []
    places = dict.fromkeys([first.folder, *(path for _, path in modules)])
    for place in places:
        (new / place.relative_to(first.folder)).mkdir(parents=True, exist_ok=True)
    own = {folder.resolve() for folder in (first.folder, *first.origins)}
    # the snapshots of the hub's cache are links to its blobs
    own |= {folder.parent.parent / "blobs" for folder in own if folder.parent.name == "snapshots"}
    left_out = []
    for path in files_under(first.folder):
        relative = path.relative_to(first.folder)
        if path.name in NOT_THE_MODEL or path.name.endswith(".index.json") or is_unused(relative):
            continue
        if path.suffix in WEIGHTS:
            if path.suffix in (".pt", ".pth") and path.parent in places:
                left_out.append(relative.as_posix())
        elif path.parent in places and any(fnmatchcase(path.name, pattern) for pattern in NEEDED):
            _refuse_private(path, own)
            _copy_setting(path, new / relative)
        else:
            left_out.append(relative.as_posix())
    for other in others:
        heads = [
            path for path in files_under(other.folder) if path.suffix in (".pt", ".pth") and path.name not in _STATES
        ]
        if heads:
            names = ", ".join(path.name for path in heads[:5])
            log.warning("not part of the merge, and left out of %s: %s", other.name, names)
    if left_out:
        shown = ", ".join(left_out[:5]) + (f" and {len(left_out) - 5} more" if left_out[5:] else "")
        log.warning("not part of the merge, and not copied from %s: %s", first.name, shown)


def _refuse_private(path: Path, own: Set[Path]) -> None:
    """A copy would have the mode of other files, so that a model from elsewhere could publish what it links to."""
    target = path.resolve()
    if own.isdisjoint(target.parents) and not target.stat().st_mode & stat.S_IROTH:
        raise DataError(f"{path} links to {target}, which not everybody may read; put a copy of it in its place")


def _copy_setting(path: Path, new: Path) -> None:
    """Copy a file without what names code: it is never run, nor carried on."""
    content = read_object(path) if path.name in ("config.json", "tokenizer_config.json") else {}
    if "auto_map" in content:
        log.warning("%s names code of its own (auto_map), which is not carried on", path)
        write_json(new, {name: value for name, value in content.items() if name != "auto_map"})
    else:
        shutil.copyfile(path, new)


def _write_indexes(plan: Plan, new: Path) -> None:
    """The index of shards, where a module has several."""
    first = plan.checkpoints[0]
    for place in {Path(file).parent: None for file in first.files}:
        shards = {file: keys for file, keys in first.files.items() if Path(file).parent == place}
        if len(shards) > 1:
            places = {name: Path(file).name for file, keys in shards.items() for _, name in keys}
            tensors = [first.tensors[key] for keys in shards.values() for key in keys]
            size = sum(count_of(tensor) * ITEM_BYTES[out_dtype(tensor, plan.options)] for tensor in tensors)
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


def describe_merge(recipe: Recipe, result: WeightsResult) -> list[str]:
    """Return what a model card says of how a merge was made, as lines of Markdown.

    Args:
        recipe: How it was merged.
        result: The weights, and the losses that led to them.
    """
    count = len(recipe.models)
    made = f"A merge of {count} models" if count > 1 else "A model"
    lines = [
        f"{made}, made with bge-cocktail {__version__} by the method `{result.method or recipe.options.method}`.",
        "",
        *_table(recipe, result),
    ]
    base = recipe.names()[-1] if result.method else recipe.options.base
    if base is not None:
        lines += ["", f"Task vectors are differences to `{shown_name(base)}`."]
    if result.scale is not None:
        lines += ["", f"The merged task vector is multiplied by {result.scale:.4f}."]
    if result.note:
        lines += ["", f"Weights: {result.note}."]
    shown = to_toml(recipe)
    for model in recipe.all_names():
        shown = shown.replace(json.dumps(model, ensure_ascii=False), json.dumps(shown_name(model), ensure_ascii=False))
    return [*lines, "", "## Recipe", "", "```toml", shown.rstrip(), "```"]


def _table(recipe: Recipe, result: WeightsResult) -> list[str]:
    losses = [None] * (len(result.weights) - len(result.losses)) + list(result.losses)
    with_losses = bool(result.losses)
    lines = ["| model | weight |" + (" loss on examples |" if with_losses else "")]
    lines.append("|---|---|" + ("---|" if with_losses else ""))
    for name, weight, loss in zip(recipe.names(), result.weights, losses, strict=True):
        more = f" {'' if loss is None else f'{loss:.4f}'} |" if with_losses else ""
        escaped = shown_name(name).replace("|", "\\|")
        lines.append(f"| {escaped} | {weight:.4f} |{more}")
    return lines
