"""Methods that only mergekit has, run by mergekit itself: it stays a program of its own, in whatever environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bge_cocktail.errors import CocktailError, DataError, MissingExtra, UsageError
from bge_cocktail.layout import transformer_folder
from bge_cocktail.merging.checkpoints import Checkpoint, read_checkpoint
from bge_cocktail.merging.mergekit_yaml import METHODS
from bge_cocktail.merging.tensors import FLOATS, AsType
from bge_cocktail.options import Merging

PREFIX = "mergekit:"
COMMAND = "BGE_COCKTAIL_MERGEKIT"
# our options that mergekit knows under another name
NAMES = {"scale": "lambda", "density": "density", "normalise": "normalize"}


def is_bridged(method: str) -> bool:
    """Whether a method is mergekit's: ``mergekit:sce``."""
    return method.startswith(PREFIX)


def bridged_method(method: str) -> str:
    """mergekit's name of a method.

    Raises:
        UsageError: It is one that is built in here.
    """
    name = method.removeprefix(PREFIX)
    if name in METHODS:
        raise UsageError(f"{method}: this method is built in, and faster: --method {METHODS[name]}")
    return name


def mergekit_command() -> str:
    """The program mergekit-yaml.

    Raises:
        MissingExtra: It is not installed.
    """
    beside = str(Path(sys.executable).parent / "mergekit-yaml")
    found = os.environ.get(COMMAND) or shutil.which("mergekit-yaml") or shutil.which(beside)
    if not found or not shutil.which(found):
        raise MissingExtra(f"mergekit (or name its mergekit-yaml in ${COMMAND})", "mergekit")
    return found


def merge_by_mergekit(
    checkpoints: Sequence[Checkpoint],
    base: Checkpoint | None,
    weights: Sequence[float],
    options: Merging,
    scratch: Path,
) -> Checkpoint:
    """The first model with the weights that mergekit merged.

    Args:
        checkpoints: The models.
        base: The base, for methods that need one.
        weights: One for each model.
        options: Of the merge; those that mergekit has too and that the user gave are handed on.
        scratch: Where mergekit writes; it lives as long as the result is read.

    Raises:
        DataError: A model that mergekit can't read: an adapter, an inner merge, one with more modules of weights.
        CocktailError: mergekit failed; its last words are in the message.
    """
    first = checkpoints[0]
    for one in (*checkpoints, *([base] if base else [])):
        if one.made is not None or len({key[0] for key, tensor in one.tensors.items() if tensor.dtype in FLOATS}) > 1:
            raise DataError(
                f"{one.name}: mergekit reads plain transformers only, no adapters, inner merges, Dense modules"
            )
    method = bridged_method(options.method)
    given = {NAMES[name]: getattr(options, name) for name in NAMES if name in options.model_fields_set}
    content: dict[str, Any] = {
        "merge_method": method,
        "dtype": "float32",
        "models": [
            {"model": str(transformer_folder(one.folder).resolve()), "parameters": {"weight": weight}}
            for one, weight in zip(checkpoints, weights, strict=True)
        ],
        **({"base_model": str(transformer_folder(base.folder).resolve())} if base else {}),
        **({"parameters": given} if given else {}),
    }
    folder = Path(tempfile.mkdtemp(dir=scratch))
    recipe, output = folder / "mergekit.yml", folder / "merged"
    recipe.write_text(json.dumps(content))  # JSON is YAML
    command = [mergekit_command(), str(recipe), str(output), "--no-copy-tokenizer", "--random-seed", str(options.seed)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        words = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["it said nothing"]
        raise CocktailError(f"mergekit could not merge by {method}: {words[-1].strip()}")
    merged = read_checkpoint(f"mergekit's {method}", output)
    tensors = {**first.tensors}
    for key in first.tensors:
        if key in merged.tensors:
            # rounded to the type of the first model where it is written
            tensors[key] = AsType(merged.tensors[key], first.tensors[key].dtype)
        elif first.tensors[key].dtype in FLOATS:
            raise CocktailError(f"mergekit left out tensor '{key[1]}'")
    return replace(first, tensors=tensors, sources=(*first.sources, *merged.sources))
