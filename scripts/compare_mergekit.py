"""Merges the same small models with mergekit and with bge-cocktail, and compares every number.

    .venv/bin/python scripts/compare_mergekit.py [--mergekit PATH/TO/mergekit-yaml] [--write]

Without --mergekit, mergekit is installed into an environment of its own under .peers/. --write stores what mergekit
gave as tests/goldens/mergekit.json, which tests/merging/test_merge_methods.py holds our methods to.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from peers import MERGEKIT, peer_environment
from safetensors.numpy import load_file, save_file

from bge_cocktail.merging.merge import merge
from bge_cocktail.merging.recipe import read_recipe

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = ROOT / "tests/goldens/mergekit.json"
CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "vocab_size": 12,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 10,
    "type_vocab_size": 2,
}
# mergekit stops its iteration sooner
TOLERANCES = {"karcher": 1e-4}
TOLERANCE = 1e-5
# what is kept of each result: a matrix of the encoder, one of the embeddings, a vector
KEPT = (
    "bert.encoder.layer.0.output.dense.weight",
    "bert.embeddings.word_embeddings.weight",
    "bert.encoder.layer.0.attention.self.query.bias",
)
RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "weights": [0.2, 0.3, 0.5]},
    "linear as given": {"merge_method": "linear", "weights": [0.2, 0.3, 0.9], "parameters": {"normalize": False}},
    "slerp": {"merge_method": "slerp", "parameters": {"t": 0.3}},
    "task arithmetic": {"merge_method": "task_arithmetic", "weights": [0.4, -0.2, 0.7], "parameters": {"lambda": 0.8}},
    "ties": {"merge_method": "ties", "weights": [0.2, 0.3, 0.5], "parameters": {"density": 0.4}},
    "ties as given": {
        "merge_method": "ties",
        "weights": [0.2, 0.3, 0.9],
        "parameters": {"density": 0.6, "normalize": False, "lambda": 1.1},
    },
    "dare linear, all kept": {
        "merge_method": "dare_linear",
        "weights": [0.2, 0.3, 0.9],
        "parameters": {"density": 1.0},
    },
    "dare ties, all kept": {"merge_method": "dare_ties", "weights": [0.2, 0.3, 0.9], "parameters": {"density": 1.0}},
    "model stock": {"merge_method": "model_stock"},
    "karcher": {"merge_method": "karcher"},
}


def make_models(folder: Path) -> list[Path]:
    """A base and three models near it, the same on every machine."""
    from transformers import BertConfig, BertForSequenceClassification

    shapes = {
        name: tuple(value.shape)
        for name, value in BertForSequenceClassification(BertConfig(**CONFIG)).state_dict().items()
        if value.is_floating_point()
    }
    base = {name: _numbers(name, 0).standard_normal(shape) for name, shape in sorted(shapes.items())}
    models = []
    for seed in range(4):
        path = folder / f"model{seed}"
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(CONFIG))
        moved = {
            name: np.asarray(value + bool(seed) * _task_vector(name, seed, value.shape), np.float32)
            for name, value in base.items()
        }
        save_file(moved, path / "model.safetensors", metadata={"format": "pt"})
        models.append(path)
    return models


def recipe_for(name: str, models: list[Path]) -> str:
    """One of the recipes in mergekit's YAML (JSON is YAML)."""
    given = RECIPES[name]
    method, weights = given["merge_method"], given.get("weights")
    tuned = models[1:]
    content: dict[str, Any] = {"merge_method": method, "dtype": "float32"}
    if method == "slerp":
        content |= {"base_model": str(models[0]), "models": [{"model": str(path)} for path in models[:2]]}
    else:
        entries = [{"model": str(path)} for path in tuned]
        for entry, weight in zip(entries, weights or [], strict=bool(weights)):
            entry["parameters"] = {"weight": weight}  # type: ignore[assignment]
        content |= {"models": entries}
        if method not in ("linear", "karcher"):
            content["base_model"] = str(models[0])
    if "parameters" in given:
        content["parameters"] = given["parameters"]
    return json.dumps(content, indent=2)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mergekit", help="the command mergekit-yaml of an environment that has it")
    parser.add_argument("--write", action="store_true", help="store what mergekit gave as golden numbers")
    arguments = parser.parse_args()
    command = arguments.mergekit or str(peer_environment("mergekit", MERGEKIT) / "bin/mergekit-yaml")
    goldens: dict[str, dict[str, list[float]]] = {}
    met = True
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        models = make_models(folder)
        for name in RECIPES:
            recipe = folder / f"{name}.yml"
            recipe.write_text(recipe_for(name, models))
            theirs, ours = folder / f"{name}-theirs", folder / f"{name}-ours"
            run = [command, str(recipe), str(theirs), "--no-copy-tokenizer", "--allow-crimes"]
            done = subprocess.run(run, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name}: mergekit failed:\n{done.stderr[-2000:]}")
            merge(read_recipe(recipe), ours)
            expected = {k: v for file in theirs.glob("*.safetensors") for k, v in load_file(file).items()}
            found = load_file(ours / "model.safetensors")
            difference = max(float(np.abs(found[key] - expected[key]).max()) for key in found if key in expected)
            allowed = TOLERANCES.get(name, TOLERANCE)
            met = met and difference <= allowed
            print(f"{name:24} {len(expected)} tensors, largest difference {difference:.1e} (allowed {allowed:.0e})")
            goldens[name] = {key: [float(f"{value:.7g}") for value in expected[key].ravel()] for key in KEPT}
    if arguments.write:
        GOLDENS.parent.mkdir(exist_ok=True)
        GOLDENS.write_text(json.dumps(goldens, indent=1) + "\n")
    print(json.dumps({"name": "compare mergekit", "recipes": len(RECIPES), "target": TOLERANCE, "met": met}))


def _task_vector(name: str, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """What tuning changed: partly the same in all models, so that their task vectors are at acute angles."""
    return 0.4 * _numbers(name, seed).standard_normal(shape) + 0.8 * _numbers(name, 9).standard_normal(shape)


def _numbers(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, *name.encode()])


if __name__ == "__main__":
    main()
