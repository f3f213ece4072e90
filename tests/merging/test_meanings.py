"""Models are compared by what their files mean: absent keys, spellings, tokenizers that look alike."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from merge_helpers import tensors_in
from safetensors.numpy import load_file, save_file

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.core.outputs import read_json
from bge_cocktail.merging.compatible import _probes, config_differences, tokenizer_differences
from bge_cocktail.merging.merge import merge
from bge_cocktail.merging.mergekit import from_mergekit
from bge_cocktail.merging.recipe import read_recipe
from bge_cocktail.models.encoder import load_encoder

QWEN = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "num_attention_heads": 4,
}
NEW = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
BERT = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2}


def config(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("one", "other", "lines"),
    [
        ({**QWEN, **NEW}, {**QWEN, "rope_theta": 10000.0}, []),
        ({**QWEN, **NEW}, {**QWEN, "rope_theta": 1e6}, ["config: rope_theta 10000.0 against 1000000.0"]),
        (
            {**QWEN, "rope_theta": 1e4},
            {**QWEN, "rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
            ["config: factor None against 4.0", "config: rope_type default against linear"],
        ),
        ({**QWEN, **NEW}, {**QWEN, **NEW, "is_causal": False}, ["config: is_causal True against False"]),
        ({**QWEN, **NEW}, {**QWEN, **NEW, "is_causal": True}, []),
        (BERT, {**BERT, "is_causal": False, "position_embedding_type": "absolute", "directionality": "bidi"}, []),
        (BERT, {**BERT, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "id2label": {"0": "x"}}, []),
        (BERT, {**BERT, "layer_norm_eps": 1e-5}, ["config: layer_norm_eps 1e-12 against 1e-05"]),
        (BERT, {**BERT, "hidden_act": "relu"}, ["config: hidden_act gelu against relu"]),
        ({"model_type": "own"}, {"model_type": "own", "rope_theta": 5.0}, []),
    ],
)
def test_what_one_configuration_leaves_out_is_the_default(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], lines: list[str]
) -> None:
    folders = config(tmp_path / "one", one), config(tmp_path / "other", other)
    assert list(config_differences(*folders)) == lines
    back = [re.sub(r"(\S+) against (\S+)$", r"\2 against \1", line) for line in lines]
    assert list(config_differences(*reversed(folders))) == back


def test_a_key_in_one_file_only_is_refused_by_merge(tiny: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny, tmp_path / "other")
    content = read_json(other / "config.json")
    del content["layer_norm_eps"]
    (other / "config.json").write_text(json.dumps(content))
    merge([tiny, other], tmp_path / "out")
    changed = shutil.copytree(tiny, tmp_path / "changed")
    (changed / "config.json").write_text(json.dumps({**content, "layer_norm_eps": 0.1}))
    with pytest.raises(DataError, match="config: layer_norm_eps 1e-12 against 0.1"):
        merge([other, changed], tmp_path / "bad")


def test_settings_beside_tokenizer_json(tiny: Path, tmp_path: Path) -> None:
    """transformers lowers a BERT's texts by its configuration, whatever tokenizer.json says."""
    other = shutil.copytree(tiny, tmp_path / "other")
    content = read_json(other / "tokenizer_config.json")
    (other / "tokenizer_config.json").write_text(json.dumps({**content, "do_lower_case": False}))
    assert tokenizer_differences(tiny, other) == ["tokenizer: do_lower_case True against False"]
    (other / "tokenizer_config.json").write_text(json.dumps({**content, "do_lower_case": True, "padding_side": "left"}))
    assert tokenizer_differences(tiny, other) == []


def test_tokenizers_that_look_alike_and_read_otherwise(tiny: Path, tmp_path: Path) -> None:
    """A key that one file has and the other lacks is a default, unless the two read a text differently."""
    content = read_json(tiny / "tokenizer.json")
    space = {"type": "Metaspace", "replacement": "e"}
    folders = []
    for name, more in {"one": {"prepend_scheme": "never"}, "other": {}, "same": {"prepend_scheme": "always"}}.items():
        folders.append(shutil.copytree(tiny, tmp_path / name))
        (folders[-1] / "tokenizer.json").write_text(json.dumps({**content, "pre_tokenizer": {**space, **more}}))
    one, other, same = folders
    assert re.fullmatch("tokenizer: '.+' becomes .+ against .+", tokenizer_differences(one, other)[0])
    assert tokenizer_differences(other, same) == []


def test_the_texts_that_tokenizers_are_compared_by() -> None:
    probes = _probes()
    assert len(probes) > 200
    assert len({ord(letter) >> 8 for text in probes for letter in text}) > 40


MODELS = [{"model": "a"}, {"model": "b"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"models": [{"model": {"model": {"path": "a"}, "lora": {"path": "l"}}}]},
            "'lora' of a model has no counterpart",
        ),
        ({"models": [{"model": {"path": "a", "revision": "r"}}]}, "'revision' of a model has no counterpart here"),
        (
            {"models": [{"model": {"model": {"path": "a", "revision": "r"}}}]},
            "'revision' of a model has no counterpart",
        ),
        ({"models": [{"model": "a", "subfolder": "s"}]}, "'subfolder' of one of the models has no counterpart here"),
        ({"models": [{"model": "a+l"}]}, "'a+l' is the model a with the adapter l"),
        ({"models": MODELS, "tokenizer": {"source": "union"}}, "tokenizer_source 'union' has no counterpart here"),
        (
            {"models": MODELS, "tokenizer": {"source": "base", "tokens": {}}},
            "'tokens' of 'tokenizer' has no counterpart",
        ),
    ],
)
def test_nothing_of_mergekits_is_dropped(content: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        from_mergekit(yaml.safe_dump({"merge_method": "linear", **content}), "x.yml")


def test_a_key_twice_in_yaml() -> None:
    with pytest.raises(UsageError, match=re.escape("broken YAML: 'merge_method' stands twice (line 2)")):
        from_mergekit("merge_method: linear\nmerge_method: slerp\nmodels: [{model: a}]", "x.yml")


def test_usual_forms_of_mergekit(tmp_path: Path) -> None:
    (tmp_path / "p+q").mkdir()
    plus = str(tmp_path / "p+q")
    text = yaml.safe_dump({"merge_method": "linear", "models": [{"model": plus}], "tokenizer": {"source": "base"}})
    assert from_mergekit(text, "x")["models"] == [{"model": plus}]
    slerp = {"merge_method": "slerp", "base_model": "a", "models": MODELS, "parameters": {"t": [{"value": 0.25}]}}
    assert from_mergekit(yaml.safe_dump(slerp), "x")["weights"] == [0.75, 0.25]


def test_filters_and_gradients_of_mergekit(tiny: Path, nudged: list[Path], tmp_path: Path) -> None:
    """By hand: the first filter that fits counts, a list goes in a line over the layers."""
    t = [{"filter": "attention", "value": [0.0, 1.0]}, {"filter": "LayerNorm", "value": 0.5}, {"value": 0.25}]
    recipe = {
        "merge_method": "linear",
        "models": [
            {"model": str(tiny), "parameters": {"weight": [{**one, "value": _complement(one["value"])} for one in t]}},
            {"model": str(nudged[0]), "parameters": {"weight": t}},
        ],
    }
    (tmp_path / "r.yml").write_text(yaml.safe_dump(recipe))
    merge(read_recipe(tmp_path / "r.yml"), tmp_path / "out")
    one, two, merged = (tensors_in(folder) for folder in (tiny, nudged[0], tmp_path / "out"))
    for name, value in merged.items():
        shares = {"layer.0.attention": 0.0, "attention": 1.0, "LayerNorm": 0.5, "": 0.25}
        share = next(share for part, share in shares.items() if part in name)
        assert np.abs(value - ((1 - share) * one[name] + share * two[name])).max() < 1e-6, name


def _complement(value: Any) -> Any:
    return [1 - part for part in value] if isinstance(value, list) else 1 - value


def renamed(model: Path, folder: Path, name: Any) -> Path:
    shutil.copytree(model, folder)
    tensors = {name(old): value for old, value in load_file(model / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("first_has_it", [True, False])
def test_a_prefix_of_all_names(tiny: Path, nudged: list[Path], tmp_path: Path, first_has_it: bool) -> None:
    """Saved with a head on top, all names begin with ``bert.``; what is merged is the same."""
    models = [tiny, nudged[0]]
    prefixed = renamed(models[not first_has_it], tmp_path / "prefixed", lambda name: f"bert.{name}")
    merge([prefixed, nudged[0]] if first_has_it else [tiny, prefixed], tmp_path / "out")
    merge(models, tmp_path / "plain")
    out = {name.removeprefix("bert."): value for name, value in tensors_in(tmp_path / "out").items()}
    for name, value in tensors_in(tmp_path / "plain").items():
        assert np.array_equal(out[name], value), name
    load_encoder(tmp_path / "out")


def test_float64_weights_are_converted(tiny: Path, nudged: list[Path], tmp_path: Path) -> None:
    import torch

    double = shutil.copytree(tiny, tmp_path / "double")
    tensors = {name: value.astype(np.float64) for name, value in load_file(tiny / "model.safetensors").items()}
    save_file(tensors, double / "model.safetensors", metadata={"format": "pt"})
    pickled = shutil.copytree(tiny, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({name: torch.from_numpy(value) for name, value in tensors.items()}, pickled / "pytorch_model.bin")
    merge([tiny, nudged[0]], tmp_path / "plain")
    for number, model in enumerate((double, pickled)):
        merge([model, nudged[0]], tmp_path / f"out{number}")
        for name, value in tensors_in(tmp_path / "plain").items():
            assert np.array_equal(tensors_in(tmp_path / f"out{number}")[name], value), name


def test_missing_tensors_name_the_way_out(tiny: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny, tmp_path / "other")
    tensors = load_file(tiny / "model.safetensors")
    gone = next(name for name in tensors if "layer.1" in name)
    save_file({name: value for name, value in tensors.items() if name != gone}, other / "model.safetensors")
    with pytest.raises(DataError, match="is missing in .*; to take such tensors from the first model: `exclude`"):
        merge([tiny, other], tmp_path / "out")


def test_an_adapter_with_added_tokens_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    described = {"peft_type": "LORA", "base_model_name_or_path": str(tiny), "r": 2, "lora_alpha": 2}
    (folder / "adapter_config.json").write_text(json.dumps({**described, "modules_to_save": ["word_embeddings"]}))
    tensors = load_file(tiny / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    query = "encoder.layer.0.attention.self.query"
    rows, columns = tensors[name].shape
    adapter = {
        f"base_model.model.{name}": np.zeros((rows + 2, columns), np.float32),
        f"base_model.model.{query}.lora_A.weight": np.zeros((2, columns), np.float32),
        f"base_model.model.{query}.lora_B.weight": np.zeros((columns, 2), np.float32),
    }
    save_file(adapter, folder / "adapter_model.safetensors")
    with pytest.raises(
        DataError, match=rf"'{name}' has shape \[{rows + 2}, .* where tokens were added, merge the adapter"
    ):
        merge([tiny, folder], tmp_path / "out")


def _changed(tiny: Path, folder: Path, file: str, change: dict[str, Any]) -> Path:
    shutil.copytree(tiny, folder)
    path = folder / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **change}))
    return folder


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("tokenizer_config.json", {"truncation_side": "left"}, "truncation_side right against left"),
        ("tokenizer_config.json", {"cls_token": "[MASK]"}, "cls_token [CLS] against [MASK]"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case False against True"),
        ("config_sentence_transformers.json", {"truncate_dim": 8}, "truncate_dim: None against 8"),
    ],
)
def test_what_makes_models_read_or_give_otherwise(
    tiny: Path, tmp_path: Path, file: str, change: dict[str, Any], said: str
) -> None:
    other = _changed(tiny, tmp_path / "other", file, change)
    with pytest.raises(DataError, match=re.escape(said)):
        merge([tiny, other], tmp_path / "out")


@pytest.mark.parametrize(
    ("one", "two", "differs"),
    [
        ({"rope_type": "default", "rope_theta": 5000.0}, {"rope_type": "default"}, True),
        ({"rope_type": "default", "rope_theta": 10000.0}, {"rope_type": "default"}, False),
        ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}, {"rope_type": "default", "rope_theta": 1e4}, True),
    ],
)
def test_rotary_parameters_are_compared_by_what_they_mean(
    tmp_path: Path, one: dict[str, Any], two: dict[str, Any], differs: bool
) -> None:
    from bge_cocktail.merging.compatible import config_differences

    for name, parameters in (("one", one), ("two", two)):
        (tmp_path / name).mkdir()
        config = {"model_type": "qwen2", "hidden_size": 64, "rope_parameters": parameters}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    assert bool(list(config_differences(tmp_path / "one", tmp_path / "two"))) == differs
