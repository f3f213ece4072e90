"""What is refused before a byte is written, with the difference and the option that settles it; peers' faults."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import build_model
from merge_helpers import raw_model, same_bytes, tensors_in, write_model

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.core.outputs import read_json
from bge_cocktail.merging.compatible import tokenizer_differences
from bge_cocktail.merging.merge import merge
from bge_cocktail.models.prompts import set_prompts
from bge_cocktail.options import MergeOptions


def changed(model: Path, folder: Path, file: str, change: Callable[[Any], None]) -> Path:
    """A copy of a model with one of its JSON files changed."""
    shutil.copytree(model, folder)
    content = read_json(folder / file)
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


def swap_words(tokenizer: Any) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["red"], vocabulary["dog"] = vocabulary["dog"], vocabulary["red"]


@pytest.mark.parametrize(
    ("file", "change", "message", "settled"),
    [
        ("tokenizer.json", swap_words, r"vocabularies differ \(.* 2 with another number", {"tokenizer_from": 1}),
        (
            "tokenizer.json",
            lambda t: t["normalizer"].update(lowercase=False),
            "its normalizer differs",
            {"tokenizer_from": 1},
        ),
        (
            "sentence_bert_config.json",
            lambda c: c.update(max_seq_length=20),
            "longest text: 48 against 20",
            {"length_from": 2},
        ),
        (
            "config_sentence_transformers.json",
            lambda c: c.update(prompts={"query": "q: "}),
            "prompts: none against",
            {"prompts_from": 2},
        ),
        (
            "config_sentence_transformers.json",
            lambda c: c.update(similarity_fn_name="dot"),
            "similarity: cosine against dot",
            None,
        ),
        ("config.json", lambda c: c.update(num_attention_heads=4), "num_attention_heads 2 against 4", None),
        ("config.json", lambda c: c.update(hidden_act="relu"), "hidden_act gelu against relu", None),
        (
            "1_Pooling/config.json",
            lambda c: c.update(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False),
            "pooling: mean_tokens against cls_token",
            None,
        ),
        (
            "modules.json",
            lambda m: m.pop(),
            "modules: Transformer, Pooling, Normalize against Transformer, Pooling",
            None,
        ),
    ],
)
def test_differences_are_named(
    tiny: Path, tmp_path: Path, file: str, change: Any, message: str, settled: dict[str, int] | None
) -> None:
    other = changed(tiny, tmp_path / "other", file, change)
    with pytest.raises(DataError, match=message) as error:
        merge([tiny, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if settled is not None:
        (name,) = settled
        assert f"`{name}=N`" in str(error.value)
        merge([tiny, other], tmp_path / "out", MergeOptions(**settled))


def test_what_is_chosen_is_what_is_written(tiny: Path, tmp_path: Path) -> None:
    other = changed(tiny, tmp_path / "other", "tokenizer.json", swap_words)
    set_prompts(other, {"query": "what "})
    length = other / "sentence_bert_config.json"
    length.write_text(json.dumps({**read_json(length), "max_seq_length": 20}))
    from bge_cocktail.models.encoder import load_encoder

    for number, (words, prompts, longest) in enumerate([(1, 2, 2), (2, 1, 1)]):
        out = tmp_path / f"out{number}"
        merge([tiny, other], out, MergeOptions(tokenizer_from=words, prompts_from=prompts, length_from=longest))
        source = (tiny, other)[words - 1]
        assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
        model = load_encoder(out, device="cpu")
        assert (model.prompts.get("query") or "") == ("what " if prompts == 2 else "")
        assert model.max_seq_length == (20 if longest == 2 else 48)


def test_tokenizers_saved_by_other_versions_are_the_same(tiny: Path, tmp_path: Path) -> None:
    """Padding, truncation, and fields that only one version writes don't make another tokenizer."""

    def again(tokenizer: Any) -> None:
        tokenizer["truncation"] = {"direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0}
        tokenizer["padding"] = None
        tokenizer["pre_tokenizer"]["new_field"] = True

    other = changed(tiny, tmp_path / "other", "tokenizer.json", again)
    assert tokenizer_differences(tiny, other) == []
    words = shutil.copytree(tiny, tmp_path / "words")
    vocabulary = read_json(words / "tokenizer.json")["model"]["vocab"]
    (words / "tokenizer.json").unlink()
    (words / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)))
    assert tokenizer_differences(tiny, words) == []
    (words / "vocab.txt").write_text("\n".join(sorted(vocabulary)))
    assert "vocabularies differ" in tokenizer_differences(tiny, words)[0]


def test_slow_tokenizers_are_compared_by_their_files(tmp_path: Path) -> None:
    folders = []
    for number, (words, lower) in enumerate([("a\nb", True), ("a\nc", True), ("a\nb", False)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "vocab.txt").write_text(words)
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
        folders.append(folder)
    assert tokenizer_differences(folders[0], folders[0]) == []
    assert tokenizer_differences(folders[0], folders[1]) == ["tokenizer: vocab.txt differs"]
    assert tokenizer_differences(folders[0], folders[2]) == ["tokenizer: do_lower_case True against False"]


def test_merges_of_byte_pairs_count(tmp_path: Path) -> None:
    def tokenizer(folder: Path, merges: list[Any]) -> Path:
        folder.mkdir()
        model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": merges}
        (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": []}))
        return folder

    old, new = tokenizer(tmp_path / "old", ["a b"]), tokenizer(tmp_path / "new", [["a", "b"]])
    other = tokenizer(tmp_path / "other", ["b a"])
    assert tokenizer_differences(old, new) == []
    assert tokenizer_differences(old, other) == ["tokenizer: its model differs"]


def test_a_dense_module_must_do_the_same(tiny: Path, tmp_path: Path) -> None:
    import torch
    from sentence_transformers.models import Dense

    from bge_cocktail.models.encoder import load_encoder

    folders = []
    for activation in (torch.nn.Tanh(), torch.nn.Identity()):
        model = load_encoder(tiny, device="cpu")
        model.append(Dense(32, 8, activation_function=activation))
        folders.append(tmp_path / type(activation).__name__)
        model.save_pretrained(str(folders[-1]), create_model_card=False)
    with pytest.raises(DataError, match=r"Dense module: activation_function .*Tanh against .*Identity"):
        merge(folders, tmp_path / "out")


def test_models_of_other_origins_are_warned_of(
    tiny: Path, nudged: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = build_model(tmp_path / "stranger", seed=5)
    with caplog.at_level(logging.WARNING, "bge_cocktail"):
        merge([tiny, stranger], tmp_path / "out")
    assert "the cosine between their weights is 0.0" in caplog.text or "is -0.0" in caplog.text
    caplog.clear()
    near = build_model(tmp_path / "near")
    with caplog.at_level(logging.WARNING, "bge_cocktail"):
        merge([tiny, near], tmp_path / "out2")
    assert caplog.text == ""


def test_excluded_tensors_are_neither_compared_nor_merged(tmp_path: Path) -> None:
    one = raw_model(tmp_path / "one", 1)
    tensors = {**tensors_in(one), "classifier.weight": np.ones((5, 8), np.float32), "extra": np.ones(3, np.float32)}
    other = write_model(tmp_path / "other", tensors)
    with pytest.raises(DataError, match=r"shape \[3, 8\] against \[5, 8\]") as error:
        merge([one, other], tmp_path / "out")
    assert "tensor 'extra' is missing in" in str(error.value)
    merge([one, other], tmp_path / "out", MergeOptions(exclude=["classifier.*", "extra"]))
    assert same_bytes(one, tmp_path / "out")


# What LM_Cocktail 0.0.4 does, seen by running it: each of these merges there without a word.


def test_peers_fault_a_mean_pooled_model_stays_mean_pooled(tiny: Path, tmp_path: Path) -> None:
    from bge_cocktail.models.encoder import load_encoder

    merge([tiny, tiny], tmp_path / "out")
    one, two = (load_encoder(path, device="cpu") for path in (tiny, tmp_path / "out"))
    assert one.max_seq_length == two.max_seq_length
    texts = ["the red dog runs", "where is the boat in the garden near the river"]
    assert np.array_equal(one.encode(texts), two.encode(texts))


@pytest.mark.parametrize("weights", [[0, 0], [-1, -2]])
def test_peers_fault_weights_without_sense(tiny: Path, tmp_path: Path, weights: list[float]) -> None:
    with pytest.raises(UsageError):
        merge([tiny, tiny], tmp_path / "out", MergeOptions(weights=weights))


def test_peers_fault_weights_that_do_not_sum_to_1(nudged: list[Path], tmp_path: Path) -> None:
    """[.05, .05] is taken as a half each; not normalised it is what was asked for, and never by accident."""
    merge(nudged[:2], tmp_path / "out", MergeOptions(weights=[0.05, 0.05]))
    merge(nudged[:2], tmp_path / "halves", MergeOptions(weights=[0.5, 0.5]))
    assert same_bytes(tmp_path / "out", tmp_path / "halves")


def test_peers_fault_a_deeper_model(tiny: Path, tmp_path: Path) -> None:
    deep = shutil.copytree(tiny, tmp_path / "deep")
    tensors = tensors_in(tiny)
    more = {name.replace("layer.1", "layer.2"): value for name, value in tensors.items() if "layer.1" in name}
    from safetensors.numpy import save_file

    save_file({**tensors, **more}, deep / "model.safetensors", metadata={"format": "pt"})
    for pair in ([tiny, deep], [deep, tiny]):
        with pytest.raises(DataError, match=r"tensor 'encoder.layer.2.* is missing in"):
            merge(pair, tmp_path / "out")


def test_peers_fault_a_checkpoint_without_pooler(tiny: Path, tmp_path: Path) -> None:
    """Nothing random is put in the place of what is not there: two runs, one result."""
    from safetensors.numpy import save_file

    bare = shutil.copytree(tiny, tmp_path / "bare")
    kept = {name: value for name, value in tensors_in(tiny).items() if "pooler" not in name}
    save_file(kept, bare / "model.safetensors", metadata={"format": "pt"})
    for name in ("one", "two"):
        merge([bare, bare], tmp_path / name)
        assert tensors_in(tmp_path / name).keys() == kept.keys()
    assert same_bytes(tmp_path / "one", tmp_path / "two")


def test_peers_fault_code_inside_a_model_is_not_run(tiny: Path, tmp_path: Path) -> None:
    def point_to_code(config: Any) -> None:
        config["auto_map"] = {"AutoModel": "evil.Evil"}

    evil = changed(tiny, tmp_path / "evil", "config.json", point_to_code)
    (evil / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    merge([evil, tiny], tmp_path / "out")
    assert not (tmp_path / "ran").exists()
