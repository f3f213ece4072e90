"""mergekit: its recipes, for the methods that both have; and its program, for those that only it has."""

from __future__ import annotations

import fnmatch
import glob
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import CocktailError, DataError, MissingExtra, UsageError, nearest
from bge_cocktail.core.outputs import read_object
from bge_cocktail.merging.checkpoints import Checkpoint, close, read_checkpoint
from bge_cocktail.merging.tensors import FLOATS, AsType
from bge_cocktail.models.folder import model_folder
from bge_cocktail.models.layers import LAYER
from bge_cocktail.models.layout import transformer_folder
from bge_cocktail.options import MergeOptions

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
    "tokenizer",
    "name",
)
# parameters of ours that go by another name there; mergekit's own defaults where they differ from ours
PARAMETER_NAMES = {"lambda": "scale", "normalize": "normalise", "density": "density", "t": "t", "weight": "weight"}


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
        content = yaml.load(text, _loader())
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: broken YAML: {error}") from None
    except RecursionError:
        raise UsageError(f"{where}: nested too deep") from None
    if not isinstance(content, dict) or "merge_method" not in content:
        raise UsageError(f"{where}: not a recipe of mergekit: it has no 'merge_method'")
    try:
        return _translate(content, where)
    except (TypeError, AttributeError, KeyError, ValueError, IndexError) as error:
        raise UsageError(f"{where}: not in the form that mergekit takes: {error}") from None


def _loader() -> Any:
    """Return YAML's safe loader, which takes the last of two values of a key, as one that refuses the second."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            own = [pair for pair in node.value if pair[0].tag != "tag:yaml.org,2002:merge"]
            names = [self.construct_object(key, deep=True) for key, _ in own]
            for place, name in enumerate(names):
                if name in names[:place]:
                    raise yaml.YAMLError(f"'{name}' stands twice (line {own[place][0].start_mark.line + 1})")
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

    return Loader


def _translate(content: dict[str, Any], where: str) -> dict[str, Any]:
    for name in content:
        if name not in KNOWN:
            raise UsageError(f"{where}: '{name}' has no counterpart here.{nearest(str(name), KNOWN)}")
    method = content["merge_method"]
    if not isinstance(method, str) or method not in METHODS:
        raise UsageError(
            f"{where}: method '{method}' is not built in; with mergekit installed: `method=mergekit:{method}`"
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
    _put_densities(values, densities, models, method, where)
    shared = values.pop("weight", None)
    if method != "model_stock":
        given = [weight if weight is not None else shared if shared is not None else 1.0 for weight in weights]
        if _are_anchors(given):
            values["layer_weights"] = [list(column) for column in zip(*given, strict=True)]
        elif any(isinstance(weight, list) for weight in given):
            values["weights"], values["weights_for"] = _by_filter(given, models, where)
        else:
            values["weights"] = [_number(weight, "weight", where) for weight in given]
    values["models"] = [{"model": model} for model in models]
    dtype = content.get("out_dtype") or content.get("dtype")
    if dtype is not None:
        values["dtype"] = dtype
    _tokenizer(content, where)
    return values


def _parameters(given: Mapping[str, Any], method: str, where: str) -> dict[str, Any]:
    values = {}
    for name, value in given.items():
        if name == "int8_mask" or (name == "rescale" and value is method.startswith("dare")):
            continue  # what is done here anyway
        if name == "t" and method != "slerp":
            raise UsageError(f"{where}: parameter 't' goes with slerp")
        if name not in PARAMETER_NAMES:
            raise UsageError(f"{where}: parameter '{name}' has no counterpart here.{nearest(name, PARAMETER_NAMES)}")
        as_it_is = (name == "normalize" and isinstance(value, bool)) or isinstance(value, list)
        values[PARAMETER_NAMES[name]] = value if as_it_is else _number(value, name, where)
    return values


def _models(content: Mapping[str, Any], where: str) -> tuple[list[str], list[Any], list[Any]]:
    entries = content.get("models")
    if entries is None:
        entries = _whole_slices(content.get("slices"), where)
    models, weights, densities = [], [], []
    for entry in entries:
        if not isinstance(entry, dict) or "model" not in entry:
            raise UsageError(f"{where}: each of 'models' needs a 'model'")
        _refuse_unknown(entry, ("model", "parameters", "layer_range"), "of one of the models", where)
        _refuse_part(entry, where)
        own = entry.get("parameters") or {}
        for name in dict(own):
            if name not in ("weight", "density"):
                raise UsageError(f"{where}: parameter '{name}' of a single model has no counterpart here")
        models.append(_name(entry["model"], where))
        weights.append(own.get("weight"))
        densities.append(own.get("density"))
    return models, weights, densities


def _whole_slices(slices: Any, where: str) -> list[Any]:
    """Return the models of a merge that is cut into one slice; models put together of layers are another thing."""
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
        _refuse_part(source, where)
    return sources


def _refuse_part(entry: Mapping[str, Any], where: str) -> None:
    layers = entry.get("layer_range")
    if layers is not None and layers != [0, _layers(entry["model"], where)]:
        raise UsageError(f"{where}: layer_range {layers} is a part of the model; only whole ones merge here")


def _layers(model: Any, where: str) -> int | None:
    """Return how many layers a model has, by its configuration."""
    config = read_object(transformer_folder(model_folder(_name(model, where))) / "config.json")
    return config.get("num_hidden_layers")


def _slerp(models: list[str], base: str | None, t: Any, where: str) -> tuple[list[str], list[Any]]:
    if base is None or t is None:
        raise UsageError(f"{where}: slerp needs 'base_model' and the parameter 't'")
    other = [model for model in models if model != base]
    if len(other) != 1:
        raise UsageError(f"{where}: slerp merges two models, the base among them")
    if isinstance(t, list):
        entries = t if _has_filters(t) else [{"value": t}]
        return [base, other[0]], [[{**one, "value": _one_minus(one.get("value"), where)} for one in entries], entries]
    share = _number(t, "t", where)
    return [base, other[0]], [1 - share, share]


def _one_minus(value: Any, where: str) -> Any:
    return (
        [1 - _number(part, "t", where) for part in value] if isinstance(value, list) else 1 - _number(value, "t", where)
    )


def _has_filters(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, dict) for entry in value)


def _are_anchors(given: list[Any]) -> bool:
    """Return whether all values are lists of one length: those at the first layer, the last, and perhaps between."""
    lengths = {len(value) if isinstance(value, list) and not _has_filters(value) else 0 for value in given}
    return len(lengths) == 1 and min(lengths) >= 2


def _by_filter(given: list[Any], models: list[str], where: str) -> tuple[list[float], dict[str, list[float]]]:
    """Return a number of each model, and those of tensors by pattern, from lists of numbers or ``{filter, value}``.

    A filter is a part of a tensor's name; the first that fits counts, an entry without one fits all. A value that is a
    list goes in a straight line from the first layer to the last; what stands before the layers has the first value,
    what stands behind them the last.
    """
    lists = [value if _has_filters(value) else [{"value": value}] for value in given]
    for entries in lists:
        for entry in entries:
            if not isinstance(entry, dict) or "value" not in entry:
                raise UsageError(f"{where}: each entry of such a list has a 'value' and perhaps a 'filter': {entry!r}")
            _refuse_unknown(entry, ("filter", "value"), "of a value", where)
            if entry["value"] == []:
                raise UsageError(f"{where}: an empty list of values has no counterpart here")
            _at(entry["value"], 0, 1, where)  # numbers, before a model is opened
    filters = list(dict.fromkeys(entry.get("filter") for entries in lists for entry in entries))
    filters = [name for name in filters if name not in (None, "*")]

    def value_of(entries: list[Any], name: str | None) -> Any:
        fits = (entry["value"] for entry in entries if entry.get("filter") in (name, None, "*"))
        value = next(fits, None)
        if value is None:
            raise UsageError(f"{where}: no value for tensors without one of the filters; add an entry without 'filter'")
        return value

    by_pattern: dict[str, list[float]] = {}
    with_layers = any(isinstance(entry["value"], list) for entries in lists for entry in entries)
    names = _tensor_names(models[0]) if with_layers else []
    layers = _layer_prefixes(names)
    if with_layers and not layers:
        raise UsageError(f"{where}: a list of values goes over the layers, and {models[0]} has no numbered ones")
    # of several patterns that match, the last counts
    for name in [None, *reversed(filters)]:
        values = [value_of(entries, name) for entries in lists]
        part = f"*{glob.escape(name)}*" if name else "*"
        if name:
            by_pattern[part] = [_at(value, 1, 1, where) for value in values]
        if any(isinstance(value, list) for value in values):
            if not name:
                by_pattern["*embed*"] = [_at(value, 0, len(layers), where) for value in values]
            for layer, prefix in enumerate(layers):
                pattern = f"{glob.escape(prefix)}{part}"
                if fnmatch.filter(names, pattern):
                    by_pattern[pattern] = [_at(value, layer, len(layers), where) for value in values]
    # what no pattern takes stands behind the layers
    return [_at(value_of(entries, None), 1, 1, where) for entries in lists], by_pattern


def _tensor_names(model: str) -> list[str]:
    checkpoint = read_checkpoint(model, model_folder(model))
    close(checkpoint)
    return [name for _, name in checkpoint.tensors]


def _layer_prefixes(names: Sequence[str]) -> list[str]:
    """Return how the names of each layer's tensors begin, from the first layer to the last."""
    matches = [match for name in names if (match := LAYER.search(name))]
    prefixes = {int(match[1]): match.string[: match.end()] for match in matches}
    return [prefixes[layer] for layer in sorted(prefixes)]


def _at(value: Any, layer: int, layers: int, where: str) -> float:
    """Return a value at a layer; at the end where there is but one."""
    if not isinstance(value, list):
        return _number(value, "value", where)
    numbers = [_number(part, "value", where) for part in value]
    place = (layer / (layers - 1) if layers > 1 else 1.0) * (len(numbers) - 1)
    low = min(int(place), len(numbers) - 1)
    high = min(low + 1, len(numbers) - 1)
    return numbers[low] + (place - low) * (numbers[high] - numbers[low])


def _put_densities(values: dict[str, Any], densities: list[Any], models: list[str], method: str, where: str) -> None:
    shared = values.pop("density", None)
    if method not in ("ties", "dare_linear", "dare_ties"):
        return
    # mergekit keeps everything of a model for which no density is said
    shared = 1.0 if shared is None else shared
    given = [shared if density is None else density for density in densities]
    if any(isinstance(density, list) for density in given):
        others, by_pattern = _by_filter(given, models, where)
        values["density_for"] = {"*": others, **by_pattern}
        return
    numbers = [_number(density, "density", where) for density in given]
    if len(set(numbers)) > 1:
        values["density_for"] = {"*": numbers}
    else:
        values["density"] = numbers[0] if numbers else _number(shared, "density", where)


def _tokenizer(content: Mapping[str, Any], where: str) -> None:
    source, chosen = content.get("tokenizer_source"), content.get("tokenizer")
    if isinstance(chosen, dict):
        _refuse_unknown(chosen, ("source",), "of 'tokenizer'", where)
        source = chosen.get("source", source)
    elif chosen is not None:
        raise UsageError(f"{where}: 'tokenizer' is {chosen!r}, expected an object with 'source'")
    if source not in (None, "base"):
        raise UsageError(f"{where}: tokenizer_source '{source}' has no counterpart here: tokenizers must be the same")


def _name(value: Any, where: str) -> str:
    """Return the name of a model, which mergekit writes as a text or as objects within objects."""
    name = value
    if isinstance(name, dict) and "model" in name:
        _refuse_unknown(name, ("model",), "of a model", where)
        name = name["model"]
    if isinstance(name, dict):
        _refuse_unknown(name, ("path",), "of a model", where)
        name = name.get("path")
    if not isinstance(name, str):
        raise UsageError(f"{where}: {value!r} is not the name of a model")
    # a + in a path that is there is a letter, and else mergekit's sign for an adapter on top of a model
    if "+" in name and not Path(name).expanduser().exists():
        model, _, adapter = name.partition("+")
        raise UsageError(
            f"{where}: '{name}' is the model {model} with the adapter {adapter}; name the adapter alone: it is "
            "folded into the base that its adapter_config.json names"
        )
    return name


def _refuse_unknown(entry: Mapping[str, Any], known: Sequence[str], what: str, where: str) -> None:
    """Refuse what would be dropped: a revision, an adapter."""
    for name, value in entry.items():
        if name not in known and value is not None:
            raise UsageError(f"{where}: '{name}' {what} has no counterpart here.{nearest(str(name), known)}")


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, str):  # YAML takes 5e-1 for a word
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{where}: '{name}' is {value!r}; only plain numbers have a counterpart here")
    if not math.isfinite(value):
        raise UsageError(f"{where}: '{name}' is {value}; a number is expected")
    return float(value)


PREFIX = "mergekit:"
COMMAND = "BGE_COCKTAIL_MERGEKIT"
# our options that mergekit knows under another name
PROGRAM_NAMES = {"scale": "lambda", "density": "density", "normalise": "normalize"}


def is_bridged(method: str) -> bool:
    """Return whether a method is mergekit's: ``mergekit:sce``."""
    return method.startswith(PREFIX)


def bridged_method(method: str) -> str:
    """mergekit's name of a method.

    Raises:
        UsageError: It is one that is built in here.
    """
    name = method.removeprefix(PREFIX)
    if name in METHODS:
        raise UsageError(f"{method}: this method is built in, and faster: `method={METHODS[name]}`")
    return name


def mergekit_command() -> str:
    """Return the program mergekit-yaml.

    Raises:
        MissingExtra: It is not installed.
    """
    beside = str(Path(sys.executable).parent / "mergekit-yaml")
    command = os.environ.get(COMMAND) or shutil.which("mergekit-yaml") or shutil.which(beside)
    if not command or not shutil.which(command):
        raise MissingExtra(f"mergekit (or name its mergekit-yaml in ${COMMAND})", "mergekit")
    return command


def merge_by_mergekit(
    checkpoints: Sequence[Checkpoint],
    base: Checkpoint | None,
    weights: Sequence[float],
    options: MergeOptions,
    scratch: Path,
) -> Checkpoint:
    """Return the first model with the weights that mergekit merged.

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
    for checkpoint in (*checkpoints, *([base] if base else [])):
        if (
            checkpoint.made is not None
            or len({key[0] for key, tensor in checkpoint.tensors.items() if tensor.dtype in FLOATS}) > 1
        ):
            raise DataError(
                f"{checkpoint.name}: mergekit reads plain transformers only, no adapters, inner merges, Dense modules"
            )
    method = bridged_method(options.method)
    given = {PROGRAM_NAMES[name]: getattr(options, name) for name in PROGRAM_NAMES if name in options.model_fields_set}
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
