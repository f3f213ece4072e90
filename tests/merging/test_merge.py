"""Merging: laws for every method, an independent reference, and hostile files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import build_model, leftovers, perturb, python
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from bge_cocktail.core.errors import CocktailError, DataError, UsageError
from bge_cocktail.merging.merge import merge, plan_merge
from bge_cocktail.merging.recipe import Recipe
from bge_cocktail.options import MergeOptions

weights_of_three = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda ws: sum(ws) > 0.01)


def weights_in(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


@settings(deadline=None, max_examples=8)
@given(weights=weights_of_three, scale=st.floats(0.1, 10))
def test_linear_equals_float64_and_scale_is_free(
    nudged: list[Path], tmp_path_factory: pytest.TempPathFactory, weights: list[float], scale: float
) -> None:
    folder = tmp_path_factory.mktemp("linear")
    merge(nudged, folder / "one", MergeOptions(weights=[scale * weight for weight in weights]))
    models = [weights_in(path) for path in nudged]
    for name, value in weights_in(folder / "one").items():
        if value.dtype.kind != "f":
            continue
        exact = sum(w * model[name].astype(np.float64) for w, model in zip(weights, models, strict=True))
        exact = exact / sum(weights)
        largest = max(np.abs(model[name]).max() for model in models)
        # one rounding for each model and one at the end, of numbers up to the largest
        assert np.abs(value - exact).max() <= 4 * np.spacing(largest)


def test_embeds_like_a_merged_state_dict(nudged: list[Path], tmp_path: Path) -> None:
    from bge_cocktail.models.encoder import load_encoder

    merge(nudged[:2], tmp_path / "out", MergeOptions(weights=[0.25, 0.75]))
    one, two = (load_encoder(path, device="cpu") for path in nudged[:2])
    state = two.state_dict()
    by_hand = {k: 0.25 * v + 0.75 * state[k] if v.is_floating_point() else v for k, v in one.state_dict().items()}
    one.load_state_dict(by_hand)
    texts = ["the red dog runs", "a small grey bird sings in the garden", "train"]
    found = load_encoder(tmp_path / "out", device="cpu").encode(texts)
    assert np.abs(found - one.encode(texts)).max() < 1e-6


def test_share_keeps_it_for_the_first(nudged: list[Path], tmp_path: Path) -> None:
    merged = merge(nudged, tmp_path / "out", MergeOptions(share=0.5, weights=[1, 3]))
    assert merged.weights == pytest.approx((0.5, 0.125, 0.375))
    described = json.loads((tmp_path / "out/run.json").read_text())
    assert [one["weight"] for one in described["models"]] == pytest.approx([0.5, 0.125, 0.375])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_output_type_rounds_to_nearest(nudged: list[Path], tmp_path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import load_file as load_torch

    merge(nudged[:2], tmp_path / "full", MergeOptions())
    merge(nudged[:2], tmp_path / "half", MergeOptions(dtype=dtype))
    full = load_torch(tmp_path / "full/model.safetensors")
    for name, value in load_torch(tmp_path / "half/model.safetensors").items():
        if full[name].is_floating_point():
            assert torch.equal(value, full[name].to(getattr(torch, dtype)))
    # and a half-precision model merged with itself stays bit for bit
    merge([tmp_path / "half", tmp_path / "half"], tmp_path / "again", MergeOptions(weights=[0.3, 0.7]))
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "half/model.safetensors").read_bytes()


def test_sharded_files_and_a_second_module(tiny: Path, tmp_path: Path) -> None:
    """Other shards, another place: tensors are matched by name; a Dense module is merged too."""
    from sentence_transformers.models import Dense

    from bge_cocktail.models.encoder import load_encoder

    folders = []
    for seed in (1, 2):
        import torch

        torch.manual_seed(seed)
        model = load_encoder(perturb(tiny, tmp_path / f"moved{seed}", seed), device="cpu")
        model.append(Dense(32, 16))
        folder = tmp_path / f"dense{seed}"
        model.save_pretrained(str(folder), create_model_card=False)
        folders.append(folder)
    whole = load_file(folders[1] / "model.safetensors")
    names = sorted(whole)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    sharded = shutil.copytree(folders[1], tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    for file, part in parts.items():
        save_file({name: whole[name] for name in part}, sharded / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))

    merge(folders, tmp_path / "one", MergeOptions(weights=[0.4, 0.6]))
    merge([folders[0], sharded], tmp_path / "two", MergeOptions(weights=[0.4, 0.6]))
    merge([sharded, folders[0]], tmp_path / "three", MergeOptions(weights=[0.6, 0.4]))
    texts = ["the red dog", "where is the boat"]
    expected = load_encoder(tmp_path / "one", device="cpu").encode(texts)
    assert expected.shape == (2, 16)
    for other in ("two", "three"):
        assert np.abs(load_encoder(tmp_path / other, device="cpu").encode(texts) - expected).max() < 1e-6
    dense = [load_file(path / "3_Dense/model.safetensors")["linear.weight"] for path in (*folders, tmp_path / "one")]
    assert np.allclose(dense[2], 0.4 * dense[0] + 0.6 * dense[1], atol=1e-7)


def test_mean_pooling_length_and_prompts_are_kept(nudged: list[Path], tmp_path: Path) -> None:
    from bge_cocktail.models.encoder import load_encoder
    from bge_cocktail.models.prompts import set_prompts

    first = shutil.copytree(nudged[0], tmp_path / "first")
    set_prompts(first, {"query": "what "})
    with pytest.raises(DataError, match=r"prompts: {'query': 'what '} against none; choose with `prompts_from=N`"):
        merge([first, nudged[1]], tmp_path / "out")
    merge([nudged[1], first], tmp_path / "out", MergeOptions(prompts_from=2))
    model = load_encoder(tmp_path / "out", device="cpu")
    assert model[1].pooling_mode == "mean"
    assert model.max_seq_length == 48
    assert model.prompts["query"] == "what "


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0, 0], "all weights are 0"),
        ([-1, 2], "weights must be numbers of at least 0"),
        ([1], "1 weights for 2 models"),
        ([1, 1, 1], "3 weights for 2 models"),
    ],
)
def test_bad_weights(nudged: list[Path], tmp_path: Path, weights: list[float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        merge(nudged[:2], tmp_path / "out", MergeOptions(weights=weights))
    assert not (tmp_path / "out").exists()


def test_shapes_that_differ_are_listed(tiny: Path, tmp_path: Path) -> None:
    wide = build_model(tmp_path / "wide", hidden=48)
    with pytest.raises(DataError) as error:
        merge([tiny, wide], tmp_path / "out")
    assert "tensor 'embeddings.LayerNorm.bias': shape [32] against [48]" in str(error.value)
    assert "more" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_missing_layers_are_listed(tiny: Path, tmp_path: Path) -> None:
    short = shutil.copytree(tiny, tmp_path / "short")
    kept = {name: value for name, value in weights_in(short).items() if ".layer.1." not in name}
    save_file(kept, short / "model.safetensors")
    with pytest.raises(DataError, match=r"tensor 'encoder.layer.1.attention.output.LayerNorm.bias' is missing in"):
        merge([tiny, short], tmp_path / "out")


def test_other_pooling_is_refused(tiny: Path, tmp_path: Path) -> None:
    cls = build_model(tmp_path / "cls", pooling="cls")
    with pytest.raises(DataError, match="pooling: .*mean_tokens.* against .*cls_token"):
        merge([tiny, cls], tmp_path / "out")


def test_whole_numbers_must_be_equal(tiny: Path, tmp_path: Path) -> None:
    folders = []
    for number in (0, 1):
        folder = shutil.copytree(tiny, tmp_path / f"ids{number}")
        ids = np.arange(64)[None] + number
        save_file({**weights_in(tiny), "embeddings.position_ids": ids}, folder / "model.safetensors")
        folders.append(folder)
    with pytest.raises(DataError, match=r"'embeddings.position_ids' \(I64\) differs"):
        merge(folders, tmp_path / "out")
    # a model that leaves such a buffer out (as newer writers do) is no obstacle
    merge([folders[0], tiny], tmp_path / "out")
    assert np.array_equal(weights_in(tmp_path / "out")["embeddings.position_ids"], np.arange(64)[None])
    assert leftovers(tmp_path) == []


def test_not_a_number_is_named(tiny: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny, tmp_path / "broken")
    tensors = weights_in(broken)
    tensors["encoder.layer.0.output.dense.bias"][3] = np.nan
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(DataError, match=r"broken: tensor 'encoder.layer.0.output.dense.bias' holds NaN"):
        merge([tiny, broken], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def test_output_that_is_an_input(nudged: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is or lies in an input"):
        merge(nudged[:2], nudged[0], overwrite=True)


def test_a_router_is_refused_and_not_half_merged(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "router"
    shutil.copytree(tiny, folder / "query_0_Transformer")
    (folder / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}]'
    )
    with pytest.raises(DataError, match=r"no \.safetensors|no module owns query_0_Transformer/model.safetensors"):
        merge([folder, tiny], tmp_path / "out")
    from bge_cocktail.models.encoder import load_encoder

    with pytest.raises(DataError, match="Router"):
        load_encoder(folder)


def test_a_module_path_that_leads_out_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "escape")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "../../elsewhere"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(DataError, match="leads out of the folder"):
        merge([folder, tiny], tmp_path / "out")


def test_values_beyond_float16(tiny: Path, tmp_path: Path) -> None:
    large = shutil.copytree(tiny, tmp_path / "large")
    tensors = weights_in(large)
    tensors["encoder.layer.0.output.dense.bias"][0] = 1e6
    save_file(tensors, large / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="beyond float16"):
        merge([large, large], tmp_path / "out", MergeOptions(dtype="float16"))
    merge([large, large], tmp_path / "out", MergeOptions(dtype="bfloat16"))


def test_torch_is_not_imported(nudged: list[Path], tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from bge_cocktail import merge; import bge_cocktail.merging; "
        f"merge([{str(nudged[0])!r}, {str(nudged[1])!r}], Path({str(tmp_path / 'out')!r})); "
        "print(sorted(set(sys.modules) & {'torch', 'transformers', 'sentence_transformers', 'faiss', 'sklearn'}))"
    )
    result = python(code)
    assert result.stdout.strip() == "[]", result.stderr
    assert (tmp_path / "out/model.safetensors").is_file()


def test_plan_writes_nothing(nudged: list[Path], tmp_path: Path) -> None:
    plan = plan_merge(Recipe(tuple(map(str, nudged))), tmp_path / "out")
    assert plan["weights"] == [1 / 3] * 3
    assert plan["megabytes_written"] > 0
    assert list(tmp_path.iterdir()) == []


def test_no_space_is_said_before_writing(nudged: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 10))
    with pytest.raises(CocktailError, match="are free; nothing was written"):
        merge(nudged[:2], tmp_path / "out")
    assert not (tmp_path / "out").exists()
