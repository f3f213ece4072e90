"""Laws that every registered merge method keeps; a new method is under them the day it is registered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, perturb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merge_helpers import options_for, raw_model, same_bytes, tensors_in

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.data.record import Record
from bge_cocktail.merging.merge import merge
from bge_cocktail.merging.methods import merge_methods
from bge_cocktail.options import EncodeOptions, MergeOptions

METHODS = list(merge_methods)
WEIGHTED = [name for name in METHODS if merge_methods.trait(name, "weighted", True)]
WITH_BASE = [name for name in METHODS if merge_methods.trait(name, "base")]
# those that look at data need a model that embeds; they are under the same laws further down
PLAIN = [name for name in METHODS if not merge_methods.trait(name, "data")]
# what a model merged with itself gives is the model, but where singular values are made equal
IDEMPOTENT = [name for name in PLAIN if merge_methods.trait(name, "equal_stays", True)]
LOOKING = [name for name in METHODS if merge_methods.trait(name, "data")]
EXAMPLES = [
    Record("which dog is red", ("the red dog runs",), ("a blue cat", "the small house")),
    Record("where is the boat", ("the boat sails near the river",), ("big train", "a grey horse")),
    Record("who sings", ("the bird sings",), ("the plum", "slow bike")),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three models tuned from it."""
    folder = tmp_path_factory.mktemp("raw")
    base = raw_model(folder / "base", 0)
    return [base, *(raw_model(folder / f"tuned{seed}", seed, like=base) for seed in (1, 2, 3))]


def some(method: str, models: list[Path]) -> list[Path]:
    """As many models as a method merges."""
    return models[: merge_methods.trait(method, "models") or len(models)]


def data_for(method: str) -> dict[str, object]:
    return {"examples": EXAMPLES, "encoding": EncodeOptions(cache=False)} if method in LOOKING else {}


def test_all_methods_of_the_papers_are_there() -> None:
    assert {
        *("linear", "slerp", "karcher", "task-arithmetic", "ties", "dare-linear", "dare-ties", "model-stock"),
        *("regmean", "fisher", "iso-c", "iso-cts", "tsv-m", "wudi"),
    } <= set(METHODS)


@pytest.mark.parametrize("method", IDEMPOTENT)
@pytest.mark.parametrize("weights", [[0.3, 0.7], [0.05, 0.05], [1 / 3, 2 / 3]])
def test_a_model_with_itself_is_itself(models: list[Path], tmp_path: Path, method: str, weights: list[float]) -> None:
    base, tuned = models[:2]
    merge([tuned, tuned], tmp_path / "own", options_for(method, tuned, weights=weights))
    assert same_bytes(tuned, tmp_path / "own")
    # also seen from another base, as long as nothing of the task vectors is dropped
    options = options_for(method, base, weights=weights, density=1.0, normalise=True)
    merge([tuned, tuned], tmp_path / "based", options)
    assert same_bytes(tuned, tmp_path / "based")


@pytest.mark.parametrize("method", [name for name in PLAIN if name in WEIGHTED])
@pytest.mark.parametrize("chosen", [0, 1])
def test_all_the_weight_gives_the_model(models: list[Path], tmp_path: Path, method: str, chosen: int) -> None:
    given_models = some(method, models[1:])
    weights = [float(row == chosen) for row in range(len(given_models))]
    merge(given_models, tmp_path / "out", options_for(method, models[0], weights=weights, density=1.0))
    assert same_bytes(given_models[chosen], tmp_path / "out")


@pytest.mark.parametrize("method", PLAIN)
@settings(deadline=None, max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weights=st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_order_does_not_matter(
    models: list[Path], tmp_path_factory: pytest.TempPathFactory, method: str, weights: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("order")
    some_models = some(method, models[1:])
    weights = weights[: len(some_models)]
    merge(some_models, folder / "one", options_for(method, models[0], weights=weights))
    merge(some_models[::-1], folder / "two", options_for(method, models[0], weights=weights[::-1]))
    assert same_bytes(folder / "one", folder / "two")


@pytest.mark.parametrize("method", [name for name in PLAIN if name in WEIGHTED])
def test_only_the_ratio_of_weights_counts(models: list[Path], tmp_path: Path, method: str) -> None:
    some_models = some(method, models[1:])
    weights = [0.25, 0.5, 1.0][: len(some_models)]  # powers of two, so that no rounding comes in
    for name, factor in (("one", 1), ("four", 4)):
        scaled = [factor * weight for weight in weights]
        merge(some_models, tmp_path / name, options_for(method, models[0], weights=scaled, normalise=True))
    assert same_bytes(tmp_path / "one", tmp_path / "four")


@pytest.mark.parametrize("method", WITH_BASE)
def test_models_that_are_the_base_give_the_base(models: list[Path], tmp_path: Path, method: str) -> None:
    merge([models[0]] * 3, tmp_path / "out", options_for(method, models[0]))
    assert same_bytes(models[0], tmp_path / "out")


@pytest.mark.parametrize("method", ["task-arithmetic", "dare-linear"])
def test_with_weights_of_sum_1_the_base_does_not_matter(models: list[Path], tmp_path: Path, method: str) -> None:
    merge(models[1:], tmp_path / "linear", MergeOptions(weights=[0.2, 0.3, 0.5]))
    for name, base in (("one", models[0]), ("two", models[3])):
        merge(models[1:], tmp_path / name, options_for(method, base, weights=[0.2, 0.3, 0.5], density=1.0))
        for key, value in tensors_in(tmp_path / name).items():
            assert np.abs(value - tensors_in(tmp_path / "linear")[key]).max() < 2e-6


@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_output_type_is_the_rounded_result(models: list[Path], tmp_path: Path, method: str, dtype: str) -> None:
    import torch
    from safetensors.torch import load_file as load_torch

    some_models = some(method, models[1:])
    merge(some_models, tmp_path / "full", options_for(method, models[0]))
    merge(some_models, tmp_path / "half", options_for(method, models[0], dtype=dtype))
    full = load_torch(tmp_path / "full/model.safetensors")
    for name, value in load_torch(tmp_path / "half/model.safetensors").items():
        assert torch.equal(value, full[name].to(getattr(torch, dtype)))


@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_inputs_are_rounded_once(models: list[Path], tmp_path: Path, method: str, dtype: str) -> None:
    """What half-precision models give is what the same numbers in float32 give, rounded at the end."""
    halves = [tmp_path / f"half{row}" for row in range(4)]
    wide = [tmp_path / f"wide{row}" for row in range(4)]
    for model, half, full in zip(models, halves, wide, strict=True):
        merge([model], half, MergeOptions(dtype=dtype))
        merge([half], full, MergeOptions(dtype="float32"))
    # a method may draw at random by what a model holds, and both hold the same
    merge(some(method, halves[1:]), tmp_path / "out", options_for(method, halves[0]))
    merge(some(method, wide[1:]), tmp_path / "expected", options_for(method, wide[0], dtype=dtype))
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "expected"))
    assert one == two


def test_threads_change_nothing(models: list[Path], tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from merge_helpers import options_for
from bge_cocktail.merging.merge import merge
from bge_cocktail.merging.methods import merge_methods
models = {[str(path) for path in models]!r}
for method in {PLAIN!r}:
    some = models[1:][: merge_methods.trait(method, "models") or 3]
    merge(some, Path(sys.argv[1]) / method, options_for(method, models[0]))
"""
    for threads in ("1", "4"):
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / threads)], check=True, cwd=ROOT, env=environment)
    for method in PLAIN:
        assert same_bytes(tmp_path / "1" / method, tmp_path / "4" / method)


@pytest.mark.parametrize("method", LOOKING)
def test_laws_of_methods_that_look_at_data(tiny: Path, nudged: list[Path], tmp_path: Path, method: str) -> None:
    data = data_for(method)
    merge([nudged[0]] * 2, tmp_path / "self", MergeOptions(method=method, weights=[0.3, 0.7]), **data)
    assert same_bytes(nudged[0], tmp_path / "self")
    merge(nudged, tmp_path / "first", MergeOptions(method=method, weights=[0, 1, 0]), **data)
    assert same_bytes(nudged[1], tmp_path / "first")
    merge(nudged, tmp_path / "one", MergeOptions(method=method, weights=[1, 2, 3]), **data)
    merge(nudged[::-1], tmp_path / "two", MergeOptions(method=method, weights=[3, 2, 1]), **data)
    assert same_bytes(tmp_path / "one", tmp_path / "two")
    merge(nudged, tmp_path / "plain", MergeOptions(weights=[1, 2, 3]))
    assert not same_bytes(tmp_path / "one", tmp_path / "plain")


@pytest.mark.parametrize("method", PLAIN)
def test_not_a_number_is_named(models: list[Path], tmp_path: Path, method: str) -> None:
    from merge_helpers import write_model

    tensors = tensors_in(models[1])
    tensors["bert.encoder.layer.1.output.dense.weight"][299, 3] = np.nan
    broken = write_model(tmp_path / "broken", tensors)
    others = [broken, models[2]]
    with pytest.raises(DataError, match=r"broken: tensor 'bert.encoder.layer.1.output.dense.weight' holds NaN"):
        merge(others, tmp_path / "out", options_for(method, models[0], density=1.0))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", WITH_BASE)
def test_a_base_is_asked_for(models: list[Path], tmp_path: Path, method: str) -> None:
    with pytest.raises(UsageError, match="`base`"):
        merge(models[1:], tmp_path / "out", MergeOptions(method=method))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_models_or_their_size(tmp_path: Path) -> None:
    """Peak memory of a merge of 12 models of 200 MB, in sparse files, is that of a merge of 2 of 4 MB, and a little."""
    from bge_cocktail.merging.tensors import header_bytes

    def sparse(folder: Path, rows: int) -> Path:
        folder.mkdir()
        (folder / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
        with open(folder / "model.safetensors", "wb") as file:
            file.write(header_bytes([("bert.encoder.layer.0.weight", "F32", (rows, 1000))]))
            file.truncate(file.tell() + 4000 * rows)
        return folder

    code = (
        "import sys; from pathlib import Path; from bge_cocktail.merging.merge import merge\n"
        "from bge_cocktail.options import MergeOptions\n"
        "options = MergeOptions(method=sys.argv[1], **({'base': sys.argv[3]} if sys.argv[1] == 'ties' else {}))\n"
        "merge(sys.argv[3:], Path(sys.argv[2]), options)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    small = [sparse(tmp_path / f"small{row}", 1000) for row in range(2)]
    large = [sparse(tmp_path / f"large{row}", 50_000) for row in range(12)]
    for method, limit in (("linear", 150), ("ties", 300)):
        peaks = []
        for name, given_models in (("s", small), ("l", large if method == "linear" else large[:3])):
            output = tmp_path / f"{method}-{name}"
            command = [sys.executable, "-c", code, method, str(output), *map(str, given_models)]
            result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            peaks.append(int(result.stdout) // 1024)
        assert peaks[1] < limit
        assert peaks[1] - peaks[0] < 15


def test_a_random_method_depends_on_its_seed_alone(models: list[Path], tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        merge(models[1:], tmp_path / name, options_for("dare-linear", models[0], seed=seed))
    assert same_bytes(tmp_path / "one", tmp_path / "again")
    assert not same_bytes(tmp_path / "one", tmp_path / "two")


def test_models_nearly_alike_are_told_apart(models: list[Path], tmp_path: Path) -> None:
    """Models that differ in one number that no sample sees are still merged in an order of their own."""
    from merge_helpers import write_model

    tensors = tensors_in(models[1])
    tensors["bert.encoder.layer.1.output.dense.weight"][7, 7] += 1
    other = write_model(tmp_path / "other", tensors)
    merge([models[1], other, models[2]], tmp_path / "one", MergeOptions(weights=[0.1, 0.2, 0.7]))
    merge([models[2], other, models[1]], tmp_path / "two", MergeOptions(weights=[0.7, 0.2, 0.1]))
    assert same_bytes(tmp_path / "one", tmp_path / "two")


def test_models_under_the_laws_differ(nudged: list[Path], tiny: Path, tmp_path: Path) -> None:
    """What the laws are tested on isn't one model three times."""
    assert not same_bytes(nudged[0], nudged[1])
    assert not same_bytes(perturb(tiny, tmp_path / "more", 9), tiny)
