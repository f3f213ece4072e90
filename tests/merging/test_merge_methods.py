"""The methods against slow references in float64, written from the papers, and against mergekit's numbers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from conftest import ROOT
from merge_helpers import raw_model, tensors_in

from bge_cocktail.merging.merge import merge
from bge_cocktail.merging.recipe import read_recipe
from bge_cocktail.models.layers import layer_of
from bge_cocktail.options import MergeOptions

sys.path.insert(0, str(ROOT / "scripts"))
from compare_mergekit import GOLDENS, RECIPES, TOLERANCE, TOLERANCES, make_models, recipe_for

Doubles = np.ndarray
Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three models tuned from it, in part in the same direction."""
    folder = tmp_path_factory.mktemp("methods")
    base = raw_model(folder / "base", 0)
    between = raw_model(folder / "between", 9, like=base, step=0.3)
    return [base, *(raw_model(folder / f"tuned{seed}", seed, like=between, step=0.3) for seed in (1, 2, 3))]


def exact(models: list[Path], name: str) -> list[Doubles]:
    return [tensors_in(path)[name].astype(np.float64) for path in models]


def slow_linear(base: Doubles, tuned: list[Doubles], weights: list[float]) -> Doubles:
    return sum(w * x for w, x in zip(weights, tuned, strict=True)) / sum(weights)  # type: ignore[return-value]


def slow_task_arithmetic(base: Doubles, tuned: list[Doubles], weights: list[float], scale: float = 0.7) -> Doubles:
    return base + scale * sum(w * (x - base) for w, x in zip(weights, tuned, strict=True))


def slow_slerp(base: Doubles, tuned: list[Doubles], weights: list[float]) -> Doubles:
    a, b = tuned
    t = weights[1] / sum(weights)
    cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b) if a.any() and b.any() else 1
    angle = np.arccos(np.clip(cosine, -1, 1))
    if np.sin(angle) < 1e-4:
        return (1 - t) * a + t * b
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def slow_karcher(base: Doubles, tuned: list[Doubles], weights: list[float]) -> Doubles:
    """The point on the sphere whose tangent mean is zero, found in the full space."""
    share = np.asarray(weights) / sum(weights)
    norms = [np.linalg.norm(x) for x in tuned]
    units = [x / n for x, n in zip(tuned, norms, strict=True)]
    centre = sum(w * u for w, u in zip(share, units, strict=True))
    centre = centre / np.linalg.norm(centre)
    for _ in range(2000):
        step = np.zeros_like(centre)
        for w, u in zip(share, units, strict=True):
            cosine = np.clip((u * centre).sum(), -1, 1)
            flat = u - cosine * centre
            length = np.linalg.norm(flat)
            if length > 1e-15:
                step = step + w * np.arccos(cosine) * flat / length
        size = np.linalg.norm(step)
        if size < 1e-14:
            break
        centre = np.cos(size) * centre + np.sin(size) * step / size
    return centre * sum(w * n for w, n in zip(share, norms, strict=True))


def slow_model_stock(base: Doubles, tuned: list[Doubles], weights: list[float]) -> Doubles:
    vectors = [(x - base).ravel() for x in tuned]
    cosines = [
        vectors[i] @ vectors[j] / (np.linalg.norm(vectors[i]) * np.linalg.norm(vectors[j]))
        for i in range(len(vectors))
        for j in range(i)
    ]
    cosine, n = max(float(np.mean(cosines)), 0.0), len(vectors)
    t = n * cosine / (1 + (n - 1) * cosine)
    return t * np.mean(tuned, axis=0) + (1 - t) * base


def slow_ties(base: Doubles, tuned: list[Doubles], weights: list[float], densities: Any = (0.3, 0.3, 0.3)) -> Doubles:
    vectors = []
    for x, density in zip(tuned, densities, strict=True):
        vector = (x - base).ravel()
        keep = max(1, int(density * vector.size)) if density else 0
        kept = np.zeros_like(vector)
        largest = np.argsort(-np.abs(vector), kind="stable")[:keep]
        kept[largest] = vector[largest]
        vectors.append(kept)
    merged = np.zeros(base.size)
    for place in range(base.size):
        here = [(w, vector[place]) for w, vector in zip(weights, vectors, strict=True)]
        sign = 1 if sum(w * v for w, v in here) >= 0 else -1
        agree = [(w, v) for w, v in here if v * sign > 0]
        if agree:
            merged[place] = sum(w * v for w, v in agree) / sum(w for w, _ in agree)
    return base + merged.reshape(base.shape)


@pytest.mark.parametrize(
    ("method", "slow", "options"),
    [
        ("linear", slow_linear, {}),
        ("task-arithmetic", slow_task_arithmetic, {"scale": 0.7}),
        ("slerp", slow_slerp, {}),
        ("karcher", slow_karcher, {}),
        ("model-stock", slow_model_stock, {}),
        ("ties", slow_ties, {"density": 0.3}),
    ],
)
def test_against_a_slow_reference(models: list[Path], tmp_path: Path, method: str, slow: Any, options: Any) -> None:
    base, tuned = models[0], models[1:3] if method == "slerp" else models[1:]
    weights = [0.3, 0.7] if method == "slerp" else [0.2, 0.3, 0.5]
    more = dict(options)
    if method != "model-stock":
        more["weights"] = weights
    if method in ("task-arithmetic", "model-stock", "ties"):
        more["base"] = str(base)
    merge(tuned, tmp_path / "out", MergeOptions(method=method, **more))
    for name, found in tensors_in(tmp_path / "out").items():
        expected = slow(exact([base], name)[0], exact(tuned, name), weights)
        assert np.abs(found - expected).max() < 3e-6, name


def test_densities_by_pattern_model_and_layer(cli: Cli, models: list[Path], tmp_path: Path) -> None:
    """mergekit's gradients of density and weight: each tensor as the slow reference has it with its own numbers."""
    base, tuned = models[0], models[1:]
    layers = 1 + max(int(name.split("layer.")[1].split(".")[0]) for name in tensors_in(base) if "layer." in name)
    rows = [
        {"density": [1, 0.5, 0.1], "weight": 1.0},
        {"density": 0.5, "weight": [0.2, 0.8]},
        {"density": [{"filter": "attention", "value": 0}, {"value": 0.33}], "weight": 0.5},
    ]
    recipe = {
        "merge_method": "ties",
        "base_model": str(base),
        "models": [{"model": str(model), "parameters": row} for model, row in zip(tuned, rows, strict=True)],
        "parameters": {"normalize": True},
    }
    (tmp_path / "r.yml").write_text(yaml.safe_dump(recipe))
    cli("merge", "-r", tmp_path / "r.yml", "-o", tmp_path / "out")
    for name, found in tensors_in(tmp_path / "out").items():
        number = layer_of(name)
        at = 0.0 if "embed" in name else 1.0 if number is None else number / (layers - 1)
        densities = (float(np.interp(at, [0, 0.5, 1], [1, 0.5, 0.1])), 0.5, 0 if "attention" in name else 0.33)
        weights = np.array([1.0, 0.2 + 0.6 * at, 0.5])
        expected = slow_ties(exact([base], name)[0], exact(tuned, name), list(weights / weights.sum()), densities)
        assert np.abs(found - expected).max() < 3e-6, name
    # the recipe that is written gives the same bytes
    assert cli("merge", "--verify", "-o", tmp_path / "out").exit_code == 0
    flags = ["--method", "dare-linear", "--base", base, "--density", 1, "--density-for", "*attention*", "0,1,1"]
    cli("merge", *tuned, *flags, "-o", tmp_path / "dare")
    for name, found in tensors_in(tmp_path / "dare").items():
        start, (one, two, three) = exact([base], name)[0], exact(tuned, name)
        expected = two + three - start + (0 if "attention" in name else one - start)
        assert np.abs(found - expected).max() < 3e-6, name


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--density-for", "*", "0.5,0.5"], "'*': 2 densities for 3 models"),
        (["--density-for", "*nowhere*", "0.5,0.5,1"], "'*nowhere*': no tensor has such a name"),
        (["--density-for", "*", "0.5,0.5,1.5"], "density_for"),
        (["--density-for", "*", "0.5,0.5,1", "--method", "task-arithmetic"], "it goes with dare-linear"),
    ],
)
def test_densities_that_can_not_be(
    cli: Cli, models: list[Path], tmp_path: Path, flags: list[str], message: str
) -> None:
    result = cli("merge", *models[1:], "--method", "ties", "--base", models[0], *flags, "-o", tmp_path / "x", code=2)
    assert message in result.stderr


def test_dare_keeps_the_mean_and_the_density(models: list[Path], tmp_path: Path) -> None:
    """Over all numbers of a large tensor: the part kept is the density, and each kept number is divided by it."""
    base, tuned = models[:2]
    name = "bert.encoder.layer.1.output.dense.weight"
    options = MergeOptions(method="dare-linear", base=str(base), density=0.25, weights=[1.0])
    merge([tuned], tmp_path / "out", options)
    before, after, merged = (tensors_in(path)[name].astype(np.float64) for path in (base, tuned, tmp_path / "out"))
    moved = merged != before
    count = moved.size
    # five standard deviations of a binomial share
    assert abs(moved.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / count)
    assert np.abs((merged - before)[moved] - 4 * (after - before)[moved]).max() < 1e-5


def test_dare_draws_for_each_model_on_its_own(models: list[Path], tmp_path: Path) -> None:
    name = "bert.encoder.layer.1.output.dense.weight"
    base = tensors_in(models[0])[name]
    kept = []
    for row in (1, 2):
        options = MergeOptions(method="dare-linear", base=str(models[0]), density=0.5, weights=[1.0])
        merge([models[row]], tmp_path / str(row), options)
        kept.append(tensors_in(tmp_path / str(row))[name] != base)
    assert abs((kept[0] & kept[1]).mean() - 0.25) < 0.02
    # and a model keeps its draw in whatever company
    options = MergeOptions(method="dare-linear", base=str(models[0]), density=0.5, weights=[1.0, 0.0])
    merge(models[1:3], tmp_path / "both", options)
    assert np.array_equal(tensors_in(tmp_path / "both")[name], tensors_in(tmp_path / "1")[name])


def test_dare_ties_takes_one_sign(models: list[Path], tmp_path: Path) -> None:
    name = "bert.encoder.layer.1.output.dense.weight"
    options = MergeOptions(method="dare-ties", base=str(models[0]), density=1.0, weights=[0.2, 0.3, 0.5])
    merge(models[1:], tmp_path / "out", options)
    base, *tuned = exact(models, name)
    vectors = [w * (x - base) for w, x in zip([0.2, 0.3, 0.5], tuned, strict=True)]
    positive = sum(vectors) >= 0
    expected = base + sum(np.where((v > 0) == positive, v, 0) for v in vectors)
    assert np.abs(tensors_in(tmp_path / "out")[name] - expected).max() < 3e-6


@pytest.mark.parametrize("density", [0.001, 0.2, 0.77])
def test_thresholds_are_exact_in_large_tensors(models: list[Path], tmp_path: Path, density: float) -> None:
    """Of one task vector TIES keeps exactly the wanted number of largest numbers, however many tiles it has."""
    name = "bert.encoder.layer.1.output.dense.weight"
    merge([models[1]], tmp_path / "out", MergeOptions(method="ties", base=str(models[0]), density=density))
    base, tuned, merged = (tensors_in(path)[name] for path in (models[0], models[1], tmp_path / "out"))
    moved = np.abs(tuned - base).ravel()
    keep = int(density * moved.size)
    expected = np.zeros(moved.size, bool)
    expected[np.argsort(-moved, kind="stable")[:keep]] = True
    assert np.array_equal((merged != base).ravel(), expected)


def test_fisher_is_the_mean_weighted_by_what_matters(tmp_path: Path) -> None:
    from bge_cocktail.merging.data_methods import fisher
    from bge_cocktail.merging.methods import Stack
    from bge_cocktail.merging.tensors import ArrayTensor

    def tensor(*values: float) -> ArrayTensor:
        return ArrayTensor(np.asarray(values, np.float32), "F32", (len(values),))

    models = [tensor(1, 1, 1, 1), tensor(3, 3, 3, 3)]
    statistics = [tensor(1, 0, 2, 0), tensor(3, 1, 2, 0)]
    stack = Stack("x", (4,), models, np.array([0.5, 0.5]), [0, 1], statistics=statistics)
    assert np.concatenate(list(fisher(stack))).tolist() == [2.5, 3.0, 2.0, 2.0]


def test_regmean_solves_for_the_outputs(tmp_path: Path) -> None:
    """With all trust in the inputs, the merged layer is the least-squares fit to what each layer gives on its own."""
    from bge_cocktail.merging.data_methods import regmean
    from bge_cocktail.merging.methods import Stack
    from bge_cocktail.merging.tensors import ArrayTensor

    generator = np.random.default_rng(0)
    layers = [generator.standard_normal((4, 6)) for _ in range(2)]
    inputs = [generator.standard_normal((50, 6)) * generator.uniform(0.1, 3, 6) for _ in range(2)]
    wanted = np.linalg.lstsq(
        np.concatenate(inputs), np.concatenate([x @ w.T for x, w in zip(inputs, layers, strict=True)]), rcond=None
    )[0].T

    def tensor(values: np.ndarray) -> ArrayTensor:
        return ArrayTensor(values.astype(np.float32).ravel(), "F32", values.shape)

    products = [tensor(x.T @ x) for x in inputs]
    stack = Stack("x", (4, 6), [tensor(w) for w in layers], np.array([0.5, 0.5]), [0, 1], statistics=products)
    found = np.concatenate(list(regmean(stack, shrinkage=1.0))).reshape(4, 6)
    assert np.abs(found - wanted).max() < 1e-4
    # with none, the inputs' sizes weigh each column
    sizes = [np.diag(x.T @ x) for x in inputs]
    found = np.concatenate(list(regmean(stack, shrinkage=0.0))).reshape(4, 6)
    expected = (layers[0] * sizes[0] + layers[1] * sizes[1]) / (sizes[0] + sizes[1])
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("name", RECIPES)
def test_mergekits_numbers(tmp_path: Path, name: str) -> None:
    """What mergekit made of the same models by the same YAML; scripts/compare_mergekit.py --write stores it."""
    golden = json.loads(GOLDENS.read_text())[name]
    models = make_models(tmp_path)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(recipe_for(name, models))
    merge(read_recipe(recipe), tmp_path / "out")
    found = tensors_in(tmp_path / "out")
    for key, values in golden.items():
        assert np.abs(found[key].ravel() - np.asarray(values)).max() < TOLERANCES.get(name, TOLERANCE)


def slow_svd(matrix: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Singular vectors by eigenvectors of the two Gram matrices' dilation, signs and all."""
    rows, columns = matrix.shape
    dilated = np.block([[np.zeros((rows, rows)), matrix], [matrix.T, np.zeros((columns, columns))]])
    values, vectors = np.linalg.eigh(dilated)
    order = np.argsort(-values)[: min(rows, columns)]
    return vectors[:rows, order] * np.sqrt(2), values[order], vectors[rows:, order].T * np.sqrt(2)


def polar(matrix: Doubles) -> Doubles:
    """The nearest orthonormal columns: M (M'M)^(-1/2)."""
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    return matrix @ (vectors / np.sqrt(values)) @ vectors.T


def slow_iso_c(changes: list[Doubles]) -> Doubles:
    left, values, right = slow_svd(sum(changes))  # type: ignore[arg-type]
    return values.mean() * left @ right


def slow_iso_cts(changes: list[Doubles]) -> Doubles:
    left, values, right = slow_svd(sum(changes))  # type: ignore[arg-type]
    rank = min(changes[0].shape)
    own = (rank - int(0.8 * rank)) // len(changes)
    shared = rank - own * len(changes)
    lefts, strengths, rights = [left[:, :shared]], [values[:shared]], [right[:shared]]
    for change in changes:
        one, strength, other = slow_svd(change - left[:, :shared] @ left[:, :shared].T @ change)
        lefts, strengths, rights = [*lefts, one[:, :own]], [*strengths, strength[:own]], [*rights, other[:own]]
    return np.concatenate(strengths).mean() * polar(np.hstack(lefts)) @ polar(np.vstack(rights).T).T


def slow_tsv_m(changes: list[Doubles]) -> Doubles:
    own = min(changes[0].shape) // len(changes)
    parts = [slow_svd(change) for change in changes]
    left = polar(np.hstack([part[0][:, :own] for part in parts]))
    right = polar(np.vstack([part[2][:own] for part in parts]).T).T
    return left @ np.diag(np.concatenate([part[1][:own] for part in parts])) @ right


@pytest.mark.parametrize(("method", "slow"), [("iso-c", slow_iso_c), ("iso-cts", slow_iso_cts), ("tsv-m", slow_tsv_m)])
def test_spectral_methods_against_slow_ones(models: list[Path], tmp_path: Path, method: str, slow: Any) -> None:
    base, *tuned = models
    merge(tuned, tmp_path / "out", MergeOptions(method=method, base=str(base), scale=0.7))
    merged = tensors_in(tmp_path / "out")
    for name, value in merged.items():
        start, *others = exact(models, name)
        if value.ndim == 2 and "embed" not in name:
            expected = start + 0.7 * slow([other - start for other in others])
        else:
            expected = start + 0.7 * np.mean([other - start for other in others], axis=0)
        assert np.abs(value - expected).max() < 2e-5, name


def interference(change: Doubles, changes: list[Doubles]) -> float:
    """WUDI's objective."""
    return sum(float(np.square((change - one) @ one.T).sum() / np.square(one).sum()) for one in changes)


def test_wudi_has_the_least_interference(models: list[Path], tmp_path: Path) -> None:
    base, *tuned = models
    merge(tuned, tmp_path / "out", MergeOptions(method="wudi", base=str(base)))
    merge(tuned, tmp_path / "steps", MergeOptions(method="wudi", base=str(base), wudi_steps=50))
    generator = np.random.default_rng(0)
    for name in ("bert.encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.1.output.dense.weight"):
        start, *others = exact(models, name)
        changes = [other - start for other in others]
        found = tensors_in(tmp_path / "out")[name] - start
        least = interference(found, changes)
        for _ in range(10):  # convex: no step to any side goes down
            aside = found + 1e-2 * generator.standard_normal(found.shape)
            assert interference(aside, changes) >= least - 1e-6
        total = np.sum(changes, axis=0)
        stepped = tensors_in(tmp_path / "steps")[name] - start
        assert least < interference(stepped, changes) < interference(total, changes)
    # what is merged with itself stays, but for rounding
    merge([tuned[0]] * 2, tmp_path / "self", MergeOptions(method="wudi", base=str(base)))
    for name, value in tensors_in(tmp_path / "self").items():
        assert np.abs(value - exact(tuned, name)[0]).max() < 1e-5


def test_adam_of_wudi_is_torchs() -> None:
    import torch

    from bge_cocktail.merging.spectral import _descended

    generator = np.random.default_rng(1)
    changes = [generator.standard_normal((6, 5)) for _ in range(3)]
    merged = torch.tensor(np.sum(changes, axis=0), requires_grad=True)
    optimiser = torch.optim.Adam([merged], lr=1e-5)
    for _ in range(30):
        optimiser.zero_grad()
        loss = sum(
            (((merged - torch.tensor(one)) @ torch.tensor(one).T) ** 2).sum() / np.square(one).sum() for one in changes
        )
        loss.backward()
        optimiser.step()
    assert np.allclose(_descended(changes, 30), merged.detach().numpy(), atol=1e-9)


def test_methods_for_tasks_say_so_of_encoders(cli: Cli, tiny: Path, nudged: list[Path], tmp_path: Path) -> None:
    shown = cli("merge", *nudged[:2], "--base", tiny, "--method", "iso-c", "-o", tmp_path / "out").stderr
    assert "made for models of different tasks" in shown
    assert (
        "takes no weights"
        in cli(
            "merge", *nudged[:2], "--base", tiny, "--method", "iso-c", "--share", 0.5, "-o", tmp_path / "o2", code=2
        ).stderr
    )
