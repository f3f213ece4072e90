"""What must be the same in models that are merged, looked at before any byte is written."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bge_cocktail.errors import DataError, UsageError
from bge_cocktail.layout import (
    declared_length,
    declared_prompts,
    modules_of,
    portable_pooling,
    read_object,
    transformer_folder,
)
from bge_cocktail.merging.checkpoints import Checkpoint
from bge_cocktail.merging.plan import is_excluded
from bge_cocktail.merging.tensors import FLOATS
from bge_cocktail.merging.tokenizers import alike, tokenizer_differences
from bge_cocktail.options import Merging

log = logging.getLogger(__name__)
MANY = 12
# what a configuration says that doesn't change how texts are embedded
WITHOUT_EFFECT = frozenset(
    (
        *("architectures", "auto_map", "chunk_size_feed_forward", "dtype", "finetuning_task", "gradient_checkpointing"),
        *("initializer_factor", "initializer_range", "max_position_embeddings", "output_attentions"),
        *("output_hidden_states", "problem_type", "return_dict", "tie_word_embeddings", "torch_dtype", "use_cache"),
        *("transformers_version", "vocab_size"),
    )
)


def check_alike(
    checkpoints: Sequence[Checkpoint], options: Merging | None = None, base: Checkpoint | None = None
) -> None:
    """Refuse models that are not of the same form, or that read or embed texts in different ways.

    Args:
        checkpoints: The models.
        options: What the user chose to leave out, or to take from one of the models.
        base: The base that task vectors are taken from; it must fit too, but its prompts and length don't matter.

    Raises:
        DataError: With the differences, and the options that settle them.
    """
    options = options or Merging()
    first = checkpoints[0]
    for other in checkpoints[1:]:
        refuse(first, other, differences(first, other, options))
    if base is not None:
        settled = options.model_copy(update={"prompts_from": 1, "length_from": 1})
        refuse(first, base, differences(first, base, settled))


def differences(first: Checkpoint, other: Checkpoint, options: Merging) -> list[str]:
    """Everything that stands against a merge of two models, a line each."""
    configs = (transformer_folder(first.folder), transformer_folder(other.folder))
    lines = [*module_differences(first, other), *config_differences(configs[0], configs[1])]
    lines += tensor_differences(first, other, options)
    if options.prompts_from is None:
        one, two = (prompts_of(model) for model in (first, other))
        if one != two:
            lines.append(f"prompts: {one or 'none'} against {two or 'none'}; choose with --prompts-from N")
    if options.length_from is None:
        lengths = [declared_length(model.length_of or model.folder) for model in (first, other)]
        if lengths[0] != lengths[1]:
            lines.append(f"longest text: {lengths[0]} against {lengths[1]} tokens; choose with --length-from N")
    if options.tokenizer_from is None:
        folders = [transformer_folder(model.tokenizer_of or model.folder) for model in (first, other)]
        lines += [f"{line}; to take one all the same: --tokenizer-from N" for line in tokenizer_differences(*folders)]
    return lines


def refuse(first: Checkpoint, other: Checkpoint, lines: Sequence[str]) -> None:
    """Refuse a merge for such reasons, if there are any.

    Raises:
        DataError: With all of them.
    """
    if lines:
        shown = list(lines[:MANY])
        if len(lines) > MANY:
            shown.append(f"and {len(lines) - MANY} more")
        raise DataError(f"{first.name} and {other.name} can't be merged:\n" + "\n".join(f"  {line}" for line in shown))


def check_numbers(options: Merging, models: int) -> None:
    """Refuse ``--prompts-from 5`` of three models.

    Raises:
        UsageError: A number beyond the models.
    """
    for name in ("prompts_from", "length_from", "tokenizer_from"):
        number = getattr(options, name)
        if number is not None and number > models:
            raise UsageError(f"--{name.replace('_', '-')} {number}: there are {models} models")


def prompts_of(model: Checkpoint) -> dict[str, str]:
    """The prompts that a model declares and that aren't empty, by name."""
    return {name: text for name, text in declared_prompts(model.prompts_of or model.folder).items() if text}


def module_differences(first: Checkpoint, other: Checkpoint) -> Iterator[str]:
    """In what the modules of two sentence-transformers folders differ, weights apart."""
    with_modules = [(model.folder / "modules.json").is_file() for model in (first, other)]
    if with_modules == [False, False]:
        return
    if not all(with_modules):
        plain = (first, other)[with_modules.index(False)]
        yield f"modules: {plain.name} is a plain transformers folder (no modules.json), so its pooling is unknown"
        return
    mine, theirs = modules_of(first.folder), modules_of(other.folder)
    kinds = [[kind for kind, _ in modules] for modules in (mine, theirs)]
    if kinds[0] != kinds[1]:
        yield f"modules: {', '.join(kinds[0])} against {', '.join(kinds[1])}"
        return
    for (kind, one), (_, two) in zip(mine, theirs, strict=True):
        if kind == "Pooling":
            poolings = [pooling_of(path) for path in (one, two)]
            if poolings[0] != poolings[1]:
                yield f"pooling: {poolings[0]} against {poolings[1]}"
        elif kind != "Transformer":
            yield from _value_differences(f"{kind} module", _config(one), _config(two))
    names = [_similarity(model.folder) for model in (first, other)]
    if names[0] != names[1]:
        yield f"similarity: {names[0]} against {names[1]}"


def config_differences(one: Path, other: Path, besides: frozenset[str] = frozenset()) -> Iterator[str]:
    """What the same tensors would do differently: other attention heads, another activation.

    Args:
        one: The folder of a transformer.
        other: Another one.
        besides: Names that may differ.
    """
    yield from _value_differences("config", _config(one), _config(other), besides)


def _value_differences(
    where: str, one: dict[str, Any], other: dict[str, Any], besides: frozenset[str] = frozenset()
) -> Iterator[str]:
    for name in sorted((one.keys() & other.keys()) - besides):
        idle = name.startswith("_") or name in WITHOUT_EFFECT or "dropout" in name
        if not idle and not alike(one[name], other[name]):
            yield f"{where}: {name} {one[name]} against {other[name]}"


def tensor_differences(first: Checkpoint, other: Checkpoint, options: Merging) -> list[str]:
    """Tensors that only one model has, or that differ in shape or kind of number."""
    lines = []
    for key in sorted(first.tensors.keys() | other.tensors.keys()):
        # the same two tensors may be tied with either name kept
        if key not in first.tensors and other.aliases.get(first.aliases.get(key, key)) == key:
            continue
        one = first.tensors.get(key)
        # a tensor that is tied to another one is that one; one that is tied in the first isn't written
        two = other.tensors.get(key) or other.tensors.get(other.aliases.get(key, key))
        present = one or two
        if present is None or is_excluded(key, options):
            continue
        # newer versions of transformers no longer store position numbers and the like
        if one is None or two is None:
            if present.dtype in FLOATS:
                lacking = first if one is None else other
                tied = " (it is tied there)" if key in lacking.aliases else ""
                lines.append(f"tensor '{key[1]}' is missing in {lacking.name}{tied}")
        elif one.shape != two.shape:
            lines.append(f"tensor '{key[1]}': shape {list(one.shape)} against {list(two.shape)}")
        elif (one.dtype in FLOATS) != (two.dtype in FLOATS):
            lines.append(f"tensor '{key[1]}': type {one.dtype} against {two.dtype}")
    return lines


def pooling_of(path: Path) -> str:
    """How a Pooling module pools, in words."""
    config = portable_pooling(read_object(path / "config.json"), str(path / "config.json"))
    modes = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode") and on]
    return " and ".join(sorted(modes)) + ("" if config.get("include_prompt", True) else " without the prompt")


def _similarity(folder: Path) -> str:
    return str(_config(folder, "config_sentence_transformers.json").get("similarity_fn_name") or "cosine")


def _config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    path = folder / name
    return read_object(path) if path.is_file() else {}
