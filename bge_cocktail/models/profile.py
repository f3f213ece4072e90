"""What a program needs to know of a model to use it: prompts, length, dimensions, pooling, norm. Nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.core.outputs import read_object
from bge_cocktail.models.folder import is_classifier, model_folder, refuse_export
from bge_cocktail.models.layout import POOLING_KEYS, declared_length, modules_of, portable_pooling, transformer_folder
from bge_cocktail.models.prompts import Prompts, model_prompts


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """What an encoder's folder declares.

    Attributes:
        name: How the user calls it: a folder or a hub name.
        folder: Where it lies.
        architecture: transformers' name of its form, such as ``bert``; empty for static embeddings.
        modules: Its modules, in order.
        prompts: What is put before queries and documents.
        max_length: The longest text in tokens, special ones included; None where nothing says it.
        dimensions: Of an embedding; None where nothing says it.
        poolings: How token embeddings become one; several are joined end to end.
        normalises: Whether the folder itself gives unit norm.
    """

    name: str
    folder: Path
    architecture: str
    modules: tuple[str, ...]
    prompts: Prompts
    max_length: int | None
    dimensions: int | None
    poolings: tuple[str, ...]
    normalises: bool


def model_profile(name: str | Path) -> ModelProfile:
    """Return what an encoder's folder declares.

    Args:
        name: A folder or a hub name.

    Raises:
        DataError: No such model, a broken one, or a plain transformers folder, which doesn't say how it pools.
        UsageError: A classifier.
    """
    folder = model_folder(name)
    if is_classifier(folder):
        raise UsageError(f"{name} is a classifier; what embeds is asked for")
    refuse_export(name, folder)
    if not (folder / "modules.json").is_file():
        raise DataError(
            f"{name} is a plain transformers folder (no modules.json), so its pooling is unknown; write it with "
            "bge-cocktail merge NAME --pooling cls -o OUT (cls, mean or lasttoken)"
        )
    modules = modules_of(folder)
    path = transformer_folder(folder) / "config.json"
    config = read_object(path) if path.is_file() else {}
    kinds = tuple(kind for kind, _ in modules)
    pooling = _pooling(modules)
    return ModelProfile(
        name=str(name),
        folder=folder,
        architecture=str(config.get("model_type", "")) if "Transformer" in kinds else "",
        modules=kinds,
        prompts=model_prompts(folder),
        max_length=declared_length(folder),
        dimensions=_dimensions(modules, config, pooling),
        poolings=tuple(mode for mode, key in POOLING_KEYS.items() if pooling.get(key)),
        normalises="Normalize" in kinds,
    )


def _pooling(modules: list[tuple[str, Path]]) -> dict[str, Any]:
    path = next((path / "config.json" for kind, path in modules if kind == "Pooling"), None)
    return portable_pooling(read_object(path), str(path)) if path is not None and path.is_file() else {}


def _dimensions(modules: list[tuple[str, Path]], config: dict[str, Any], pooling: dict[str, Any]) -> int | None:
    """Return the size that the last module with one gives."""
    size = config.get("hidden_size", config.get("d_model", config.get("dim")))
    if pooling:
        size = pooling.get("word_embedding_dimension", size)
        modes = sum(bool(pooling.get(key)) for key in POOLING_KEYS.values())
        size = size * max(modes, 1) if isinstance(size, int) else None
    for kind, path in modules:
        if kind == "Dense" and (path / "config.json").is_file():
            size = read_object(path / "config.json").get("out_features", size)
        if kind == "StaticEmbedding":
            size = _rows_of(path)
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def _rows_of(path: Path) -> int | None:
    from safetensors import safe_open

    for file in path.glob("*.safetensors"):
        with safe_open(file, "numpy") as opened:
            shapes = [opened.get_slice(key).get_shape() for key in opened.keys()]  # noqa: SIM118
        return int(shapes[0][1]) if shapes and len(shapes[0]) == 2 else None
    return None
