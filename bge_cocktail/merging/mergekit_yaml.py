"""Recipes written for mergekit, for the methods that both have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bge_cocktail.errors import UsageError, nearest
from bge_cocktail.hub import model_folder
from bge_cocktail.layout import read_object, transformer_folder

METHODS = {
    "linear": "linear",
    "slerp": "slerp",
    "karcher": "karcher",
    "task_arithmetic": "task-arithmetic",
    "ties": "ties",
    "dare_linear": "dare-linear",
    "dare_ties": "dare-ties",
    "model_stock": "model-stock",
}
KNOWN = (
    "merge_method",
    "models",
    "slices",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "name",
)
# parameters of ours that go by another name there; mergekit's own defaults where they differ from ours
NAMES = {"lambda": "scale", "normalize": "normalise", "density": "density", "t": "t", "weight": "weight"}


def from_mergekit(text: str, where: str) -> dict[str, Any]:
    """Plain values of a recipe from mergekit's YAML.

    Args:
        text: The YAML.
        where: Its place, for messages.

    Returns:
        What `recipe_from` takes.

    Raises:
        UsageError: Not such a file, or something in it that has no counterpart here.
    """
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: broken YAML: {error}") from None
    if not isinstance(content, dict) or "merge_method" not in content:
        raise UsageError(f"{where}: not a recipe of mergekit: it has no 'merge_method'")
    try:
        return _translate(content, where)
    except (TypeError, AttributeError, KeyError, ValueError, IndexError) as error:
        raise UsageError(f"{where}: not in the form that mergekit takes: {error}") from None


def _translate(content: dict[str, Any], where: str) -> dict[str, Any]:
    for name in content:
        if name not in KNOWN:
            raise UsageError(f"{where}: '{name}' has no counterpart here.{nearest(str(name), KNOWN)}")
    method = content["merge_method"]
    if not isinstance(method, str) or method not in METHODS:
        raise UsageError(
            f"{where}: method '{method}' is not built in; with mergekit installed: --method mergekit:{method}"
            f" (built in: {', '.join(METHODS)})"
        )
    values: dict[str, Any] = {"method": METHODS[method]}
    values |= _parameters(content.get("parameters") or {}, method, where)
    base = _name(content["base_model"], where) if content.get("base_model") is not None else None
    models, weights, densities = _models(content, where)
    if method in ("linear", "karcher"):
        base = None
    elif method == "slerp":
        models, weights = _slerp(models, base, values.pop("t", None), where)
        base = None
    else:
        # the base is often listed among the models, without a weight of its own
        listed = [row for row, model in enumerate(models) if model == base]
        models = [model for row, model in enumerate(models) if row not in listed]
        weights = [weight for row, weight in enumerate(weights) if row not in listed]
        densities = [density for row, density in enumerate(densities) if row not in listed]
    if base is not None:
        values["base"] = base
    _put_densities(values, densities, method, where)
    shared = values.pop("weight", None)
    if method != "model_stock":
        given = [weight if weight is not None else shared if shared is not None else 1.0 for weight in weights]
        lists = [weight for weight in given if isinstance(weight, list)]
        if len(lists) == len(given) and method == "linear":
            values["layer_weights"] = [list(column) for column in zip(*_same_length(lists), strict=True)]
        else:
            values["weights"] = [_number(weight, "weight", where) for weight in given]
    values["models"] = [{"model": model} for model in models]
    dtype = content.get("out_dtype") or content.get("dtype")
    if dtype is not None:
        values["dtype"] = dtype
    _tokenizer(content.get("tokenizer_source"), where)
    return values


def _parameters(given: Mapping[str, Any], method: str, where: str) -> dict[str, Any]:
    values = {}
    for name, value in given.items():
        if name == "int8_mask" or (name == "rescale" and value is method.startswith("dare")):
            continue  # what is done here anyway
        if name == "t" and method != "slerp":
            raise UsageError(f"{where}: parameter 't' goes with slerp")
        if name not in NAMES:
            raise UsageError(f"{where}: parameter '{name}' has no counterpart here.{nearest(name, NAMES)}")
        as_it_is = (name == "normalize" and isinstance(value, bool)) or isinstance(value, list)
        values[NAMES[name]] = value if as_it_is else _number(value, name, where)
    return values


def _models(content: Mapping[str, Any], where: str) -> tuple[list[str], list[Any], list[Any]]:
    entries = content.get("models")
    if entries is None:
        entries = _whole_slices(content.get("slices"), where)
    models, weights, densities = [], [], []
    for entry in entries:
        if not isinstance(entry, dict) or "model" not in entry:
            raise UsageError(f"{where}: each of 'models' needs a 'model'")
        own = entry.get("parameters") or {}
        for name in dict(own):
            if name not in ("weight", "density"):
                raise UsageError(f"{where}: parameter '{name}' of a single model has no counterpart here")
        models.append(_name(entry["model"], where))
        weights.append(own.get("weight"))
        densities.append(own.get("density"))
    return models, weights, densities


def _whole_slices(slices: Any, where: str) -> list[Any]:
    """The models of a merge that is cut into one slice; models put together of layers are another thing."""
    if (
        not isinstance(slices, list)
        or len(slices) != 1
        or not isinstance(slices[0], dict)
        or set(slices[0]) != {"sources"}
    ):
        raise UsageError(
            f"{where}: models made of several slices (layers of different models stacked) aren't merged here"
        )
    sources = list(slices[0]["sources"])
    for source in sources:
        for name in set(source) - {"model", "layer_range", "parameters"}:
            raise UsageError(f"{where}: '{name}' of a slice has no counterpart here")
        if source.get("layer_range") is not None and source["layer_range"] != [0, _layers(source["model"], where)]:
            raise UsageError(
                f"{where}: layer_range {source['layer_range']} is a part of the model; only whole ones merge here"
            )
    return sources


def _layers(model: Any, where: str) -> int | None:
    """How many layers a model has, by its configuration."""
    config = read_object(transformer_folder(model_folder(_name(model, where))) / "config.json")
    return config.get("num_hidden_layers")


def _slerp(models: list[str], base: str | None, t: Any, where: str) -> tuple[list[str], list[Any]]:
    if base is None or t is None:
        raise UsageError(f"{where}: slerp needs 'base_model' and the parameter 't'")
    other = [model for model in models if model != base]
    if len(other) != 1:
        raise UsageError(f"{where}: slerp merges two models, the base among them")
    if isinstance(t, list):
        raise UsageError(f"{where}: 't' as a list has no counterpart here; use layer_weights in a TOML recipe")
    share = _number(t, "t", where)
    return [base, other[0]], [1 - share, share]


def _put_densities(values: dict[str, Any], densities: list[Any], method: str, where: str) -> None:
    if method not in ("ties", "dare_linear", "dare_ties"):
        return
    # mergekit keeps everything of a model for which no density is said
    shared = values.pop("density", 1.0)
    found = {_number(shared if one is None else one, "density", where) for one in densities}
    if len(found) > 1:
        raise UsageError(f"{where}: densities that differ between models have no counterpart here: {sorted(found)}")
    values["density"] = found.pop() if found else shared


def _same_length(lists: list[list[Any]]) -> list[list[Any]]:
    longest = max(len(one) for one in lists)
    if longest < 2 or any(len(one) != longest for one in lists):
        raise UsageError("lists of weights of different length have no counterpart here")
    return lists


def _tokenizer(source: Any, where: str) -> None:
    if source not in (None, "base"):
        raise UsageError(f"{where}: tokenizer_source '{source}' has no counterpart here: tokenizers must be the same")


def _name(value: Any, where: str) -> str:
    name = value.get("model") if isinstance(value, dict) else value
    name = name.get("path") if isinstance(name, dict) else name
    if not isinstance(name, str) or "+" in name:
        raise UsageError(f"{where}: {value!r} is not the name of a model")
    return name


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{where}: '{name}' is {value!r}; only plain numbers have a counterpart here")
    return float(value)
