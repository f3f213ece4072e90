"""inspect: distances, cosines and conflicts against a slow reference; what is refused and why; the picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from conftest import build_model, leftovers
from merge_helpers import raw_model, tensors_in, write_model

from bge_cocktail.core.errors import UsageError
from bge_cocktail.merging.inspect import inspect

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("inspect")
    base = raw_model(folder / "base", 0)
    between = raw_model(folder / "between", 9, like=base)
    return [base, *(raw_model(folder / f"tuned{seed}", seed, like=between) for seed in (1, 2))]


def test_numbers_by_layer_equal_a_slow_reference(models: list[Path]) -> None:
    found = inspect([str(path) for path in models[1:]], str(models[0]))
    base, one, two = (tensors_in(path) for path in models)
    assert set(found.layers) == {"embeddings", "layer 0", "layer 1", "layer 2", "after"}
    groups: dict[str, list[str]] = {}
    for name in base:
        layer = next((f"layer {n}" for n in range(3) if f"layer.{n}." in name), "")
        groups.setdefault(layer or ("embeddings" if "embed" in name else "other"), []).append(name)
    for layer in ("embeddings", "layer 0", "layer 1", "layer 2"):
        column = found.layers.index(layer)
        names = groups[layer]
        flat = [
            np.concatenate([model[name].astype(np.float64).ravel() for name in names]) for model in (base, one, two)
        ]
        vectors = [model - flat[0] for model in flat[1:]]
        for row, vector in enumerate(vectors):
            expected = np.linalg.norm(vector) / np.linalg.norm(flat[0])
            assert found.moved[row][column] == pytest.approx(expected, rel=1e-4)
        cosine = vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1])
        assert found.agreement["tuned1 × tuned2"][column] == pytest.approx(cosine, abs=1e-4)
        opposite = np.mean(np.sign(vectors[0]) * np.sign(vectors[1]) < 0)
        assert found.conflicts["tuned1 × tuned2"][column] == pytest.approx(opposite, abs=1e-4)
    pair = next(pair for pair in found.pairs if pair.one.endswith("tuned1"))
    assert pair.verdict == "promising: the same direction"


def test_directions_that_pull_apart(models: list[Path], tmp_path: Path) -> None:
    base, one = (tensors_in(path) for path in models[:2])
    mirrored = write_model(tmp_path / "mirrored", {name: 2 * base[name] - one[name] for name in base})
    found = inspect([str(models[1]), str(mirrored)], str(models[0]))
    pair = found.pairs[-1]
    assert pair.agreement == pytest.approx(-1, abs=1e-3)
    assert pair.conflicts == pytest.approx(1, abs=1e-3)
    assert pair.verdict.startswith("pull apart")


def test_what_did_not_move_is_left_empty(models: list[Path]) -> None:
    found = inspect([str(models[0])] * 2 + [str(models[1])])
    assert found.moved[0] == (0,) * len(found.layers)
    assert all(value is None for values in found.agreement.values() for value in values)


def test_refusals_and_the_rest_side_by_side(cli: Cli, tiny: Path, nudged: list[Path], tmp_path: Path) -> None:
    wide = build_model(tmp_path / "wide", hidden=48)
    stranger = build_model(tmp_path / "stranger", seed=5)
    result = cli("inspect", tiny, wide, nudged[0], stranger, "-o", tmp_path / "out")
    assert "tiny and wide can't be merged:" in result.stdout
    assert "shape [32] against [48]" in result.stdout
    assert "not from one base: a merge is mostly noise" in result.stdout
    assert "Transformer, Pooling, Normalize" in result.stdout
    content = json.loads((tmp_path / "out/inspect.json").read_text())
    assert content["compared"] == ["nudged0", "stranger"]
    refused = [pair for pair in content["pairs"] if pair["refused"]]
    assert len(refused) == 3  # wide with each of the others
    assert (tmp_path / "out/heatmap.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "out/run.json").read_text())["inputs"].keys() == {
        str(path) for path in (tiny, wide, nudged[0], stranger)
    }
    assert leftovers(tmp_path) == []
    assert json.loads(cli("inspect", tiny, nudged[0], "--format", "json").stdout)["layers"]


def test_one_model_is_not_enough(cli: Cli, tiny: Path) -> None:
    with pytest.raises(UsageError, match="at least two models"):
        inspect([str(tiny)])
    assert "at least two models" in cli("inspect", tiny, code=2).output


def test_torch_is_not_needed(models: list[Path]) -> None:
    from conftest import python

    code = (
        "import sys; from bge_cocktail.merging.inspect import inspect\n"
        f"inspect({[str(path) for path in models]!r})\n"
        "print(sorted(set(sys.modules) & {'torch', 'transformers', 'sentence_transformers'}))"
    )
    assert python(code).stdout.strip() == "[]"
