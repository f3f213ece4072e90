"""A recipe: the models of a merge, which may be merges themselves, and how they become one. Written as TOML."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from bge_cocktail.core.errors import DataError, UsageError, nearest
from bge_cocktail.core.outputs import refuse_pipe
from bge_cocktail.options import MergeOptions, checked

CHECKPOINT = re.compile(r"checkpoint-\d+")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to merge.

    Attributes:
        models: Folders, hub names, or recipes whose result is taken without being written.
        options: Method, weights, parameters.
        name: What tables call its result inside another recipe.
    """

    models: tuple[str | Recipe, ...]
    options: MergeOptions = field(default_factory=MergeOptions)
    name: str = "merge"

    def names(self) -> tuple[str, ...]:
        """Return what tables call the models."""
        return tuple(model if isinstance(model, str) else model.name for model in self.models)

    def all_names(self) -> list[str]:
        """Return the names of all models that are read, the base first, those of inner recipes too."""
        names = [self.options.base] if self.options.base is not None else []
        for model in self.models:
            names += [model] if isinstance(model, str) else model.all_names()
        return names


def read_recipe(path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe from TOML, or from the YAML of mergekit.

    Args:
        path: A .toml file, or .yml or .yaml for mergekit's.
        changes: Options that go before the file's.

    Raises:
        DataError: No such file.
        UsageError: Broken TOML, unknown names, wrong values.
    """
    refuse_pipe(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such recipe") from None
    except (UnicodeDecodeError, IsADirectoryError):
        raise UsageError(f"{path} is not a text file") from None
    if path.suffix in (".yml", ".yaml"):
        from bge_cocktail.merging.mergekit import from_mergekit

        values = from_mergekit(text, str(path))
    else:
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{path}: broken TOML: {error}") from None
        except RecursionError:
            raise UsageError(f"{path}: nested too deep") from None
    try:
        return recipe_from(values, str(path), changes)
    except RecursionError:
        raise UsageError(f"{path}: nested too deep") from None


def recipe_from(values: Mapping[str, Any], where: str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Return a recipe from plain values.

    Args:
        values: ``models``, a list of tables with ``model`` (or ``recipe``) and perhaps ``weight``; the rest are
            options.
        where: Its place, for messages.
        changes: Options that go before those.

    Raises:
        UsageError: Unknown names, wrong values, no models.
    """
    entries = values.get("models")
    if not isinstance(entries, list) or not entries:
        raise UsageError(
            f"{where}: a recipe needs [[models]] tables, each with 'model' (or 'recipe') and maybe 'weight'"
        )
    models: list[str | Recipe] = []
    weights: list[Any] = []
    for number, entry in enumerate(entries, start=1):
        place = f"{where}: models {number}"
        if not isinstance(entry, dict) or ("model" in entry) == ("recipe" in entry):
            raise UsageError(f"{place}: give either 'model', a folder or hub name, or 'recipe', a table")
        for name in entry:
            if name not in ("model", "recipe", "weight"):
                raise UsageError(f"{place}: unknown name '{name}'.{nearest(name, ('model', 'recipe', 'weight'))}")
        if isinstance(entry.get("recipe"), dict):
            models.append(recipe_from(entry["recipe"], f"{place}, recipe"))
        elif isinstance(entry.get("model"), str):
            models.append(entry["model"])
        else:
            raise UsageError(f"{place}: 'model' is a text and 'recipe' is a table")
        weights.append(entry.get("weight"))
    rest = {name: value for name, value in values.items() if name not in ("models", "name")}
    given = [weight for weight in weights if weight is not None]
    if given:
        if "weights" in rest:
            raise UsageError(f"{where}: weights stand both at the models and in 'weights'; keep one of them")
        if len(given) != len(weights):
            raise UsageError(
                f"{where}: {len(given)} of {len(weights)} models have a weight; give one to each, or to none"
            )
        rest["weights"] = given
    rest |= changes or {}
    return Recipe(
        tuple(models), checked(MergeOptions, rest, dict.fromkeys(rest, where)), str(values.get("name", "merge"))
    )


def every_options(recipe: Recipe) -> list[MergeOptions]:
    """Return the options of a recipe and of those inside it."""
    return [
        recipe.options,
        *(option for model in recipe.models if isinstance(model, Recipe) for option in every_options(model)),
    ]


def expand(models: Sequence[str | Path]) -> list[str]:
    """Names of models; a folder of a training's checkpoints becomes all of them, oldest first."""
    names: list[str] = []
    for model in models:
        folder = Path(model)
        checkpoints = [path for path in folder.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name)]
        if checkpoints and not any((folder / name).is_file() for name in ("modules.json", "config.json")):
            names += [str(path) for path in sorted(checkpoints, key=lambda path: int(path.name.split("-")[1]))]
        else:
            names.append(str(model))
    return names


def to_toml(recipe: Recipe) -> str:
    """Return the recipe as TOML, with the options that differ from the defaults."""
    return tomli_w.dumps(_table(recipe))


def _table(recipe: Recipe) -> dict[str, Any]:
    options = {"method": recipe.options.method, "weights": recipe.options.weights}
    options |= recipe.options.model_dump(exclude_defaults=True)
    models = [{"recipe": _table(model)} if isinstance(model, Recipe) else {"model": model} for model in recipe.models]
    named = {} if recipe.name == "merge" else {"name": recipe.name}
    return {**named, **options, "models": models}
