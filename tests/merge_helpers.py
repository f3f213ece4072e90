"""Models of a few tensors, for tests of merging: written without torch, read back as arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from bge_cocktail.merging.methods import merge_methods
from bge_cocktail.options import MergeOptions

SHAPES = {
    "bert.embeddings.word_embeddings.weight": (40, 8),
    "bert.encoder.layer.0.attention.self.query.weight": (8, 8),
    "bert.encoder.layer.0.attention.self.query.bias": (8,),
    "bert.encoder.layer.1.output.dense.weight": (300, 250),
    "bert.encoder.layer.2.output.LayerNorm.weight": (8,),
    "classifier.weight": (3, 8),
    "scalar": (),
}


def raw_model(folder: Path, seed: int, *, like: Path | None = None, step: float = 0.05, **config: Any) -> Path:
    """A sequence classifier of a few tensors, one of them of more than one tile; near another model if one is given."""
    generator = np.random.default_rng(seed)
    start = tensors_in(like) if like else {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    scale = step if like else 1.0
    return write_model(
        folder,
        {
            name: np.asarray(start[name] + scale * generator.standard_normal(shape), np.float32)
            for name, shape in SHAPES.items()
        },
        **config,
    )


def write_model(folder: Path, tensors: Mapping[str, np.ndarray], **config: Any) -> Path:
    """A plain transformers folder."""
    folder.mkdir(parents=True)
    described = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", **config}
    (folder / "config.json").write_text(json.dumps(described))
    save_file(
        {name: np.asarray(value) for name, value in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def tensors_in(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder."""
    return {name: value for file in sorted(folder.rglob("*.safetensors")) for name, value in load_file(file).items()}


def same_bytes(one: Path, two: Path) -> bool:
    """Whether two folders hold the same tensors bit for bit."""
    first, second = tensors_in(one), tensors_in(two)
    return first.keys() == second.keys() and all(first[k].tobytes() == second[k].tobytes() for k in first)


def options_for(method: str, base: Path, **more: Any) -> MergeOptions:
    """Options with which a method runs; those that it doesn't take are left out."""
    from bge_cocktail.core.registry import keyword_names

    known = {
        name: value
        for name, value in more.items()
        if name != "density" or "density" in keyword_names(merge_methods[method])
    }
    if merge_methods.trait(method, "weighted", True) is False:
        known = {name: value for name, value in known.items() if name not in ("weights", "normalise")}
    if merge_methods.trait(method, "base"):
        known["base"] = str(base)
    return MergeOptions(method=method, **known)
