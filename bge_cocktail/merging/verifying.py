"""Whether a merged folder holds what its recipe says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bge_cocktail.errors import CocktailError, DataError
from bge_cocktail.merging.preparing import prepare
from bge_cocktail.merging.recipe import read_recipe
from bge_cocktail.merging.streaming import input_hashes, one_thread, open_kitchen
from bge_cocktail.merging.tensors import WeightsFile
from bge_cocktail.merging.writing import contents
from bge_cocktail.options import Encoding
from bge_cocktail.provenance import RECIPE_FILE, RUN_FILE
from bge_cocktail.records import Record


def verify_merge(folder: Path, *, examples: Sequence[Record] = (), encoding: Encoding | None = None) -> dict[str, Any]:
    """Merge again by the recipe and the weights that a folder records, and compare every byte; nothing is written.

    Args:
        folder: An output of `merge`.
        examples: For methods that look at data; weights that were found are not sought again.
        encoding: How examples are embedded for that.

    Returns:
        What was compared.

    Raises:
        DataError: The folder was not made by a merge, or an input is no longer what it was.
        CocktailError: The weights are others.
    """
    try:
        recorded = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        if recorded["command"] != "merge":
            raise ValueError(f"it was made by '{recorded['command']}'")
        recipe = read_recipe(folder / RECIPE_FILE)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} was not made by bge-cocktail merge: {error}") from None
    with open_kitchen(examples, encoding, None) as kitchen, one_thread():
        plan, _ = prepare(recipe, kitchen, recorded=recorded)
        for name, now in input_hashes(recipe, plan).items():
            if recorded["inputs"].get(name) != now:
                raise DataError(f"{name} is no longer what it was when {folder} was merged")
        compared = sum(_compare(plan, folder, file) for file in plan.checkpoints[0].files)
    return {"output": str(folder), "inputs": "unchanged", "bytes_compared": compared, "identical": True}


def _compare(plan: Any, folder: Path, file: str) -> int:
    path = folder / file
    if not path.is_file():
        raise CocktailError(f"{path} is missing")
    there, place = WeightsFile(path), 0
    try:
        for content in contents(plan, file):
            seen = bytearray(len(content))
            there.peek(place, memoryview(seen))
            if seen != bytearray(content):
                raise CocktailError(f"{path} is not what its recipe gives: it differs after {place:,} bytes")
            place += len(content)
    finally:
        there.close()
    if path.stat().st_size != place:
        raise CocktailError(f"{path} has {path.stat().st_size:,} bytes, its recipe gives {place:,}")
    return place
