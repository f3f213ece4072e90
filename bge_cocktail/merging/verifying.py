"""Whether a merged folder holds what its recipe says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bge_cocktail.errors import CocktailError, DataError
from bge_cocktail.layout import read_object
from bge_cocktail.merging.plan import Plan
from bge_cocktail.merging.preparing import prepare
from bge_cocktail.merging.recipe import Recipe, read_recipe
from bge_cocktail.merging.streaming import input_hashes, one_thread, open_kitchen
from bge_cocktail.merging.tensors import WeightsFile
from bge_cocktail.merging.writing import contents, write_settings
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
        recipe = read_recipe(folder / RECIPE_FILE)
        recorded = _recorded(folder, recipe)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError) as error:
        raise DataError(f"{folder} was not made by bge-cocktail merge: {error}") from None
    with open_kitchen(examples, encoding, None) as kitchen, one_thread():
        plan, _ = prepare(recipe, kitchen, recorded=recorded)
        for name, now in input_hashes(recipe, plan).items():
            if recorded["inputs"].get(name) != now:
                raise DataError(f"{name} is no longer what it was when {folder} was merged")
        weights = [_compare(plan, folder, file) for file in plan.checkpoints[0].files]
        others = _compare_settings(plan, folder, kitchen.scratch / "settings")
    return {
        "output": str(folder),
        "inputs": "unchanged",
        "files_compared": len(weights) + len(others),
        "bytes_compared": sum(weights) + sum(others),
        "identical": True,
    }


def _recorded(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """What run.json says of a merge, as far as it is needed to do it again.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: It isn't what a merge writes.
    """
    content = read_object(folder / RUN_FILE)
    if content["command"] != "merge":
        raise ValueError(f"it was made by '{content['command']}'")
    _check_record(content, recipe)
    return {**content, "inputs": {str(name): str(value) for name, value in content["inputs"].items()}}


def _check_record(record: dict[str, Any], recipe: Recipe) -> None:
    if len(record["models"]) != len(recipe.models):
        raise ValueError(f"{RUN_FILE} and {RECIPE_FILE} hold different numbers of models")
    for weights in ([one["weight"] for one in record["models"]], *record.get("weights_for", {}).values()):
        if not all(isinstance(weight, int | float) for weight in weights):
            raise ValueError(f"{RUN_FILE}: weights that are no numbers")
    if not isinstance(record.get("scale", 1.0), int | float):
        raise ValueError(f"{RUN_FILE}: a scale that is no number")
    for one, model in zip(record["models"], recipe.models, strict=True):
        if isinstance(model, Recipe):
            _check_record(one["recipe"], model)


def _compare_settings(plan: Plan, folder: Path, scratch: Path) -> list[int]:
    """All that is no weight: written again and compared."""
    scratch.mkdir()
    write_settings(plan, scratch)
    sizes = []
    for path in sorted(path for path in scratch.rglob("*") if path.is_file()):
        there = folder / path.relative_to(scratch)
        if not there.is_file() or there.read_bytes() != path.read_bytes():
            raise CocktailError(f"{there} is not what its recipe gives")
        sizes.append(path.stat().st_size)
    return sizes


def _compare(plan: Plan, folder: Path, file: str) -> int:
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
