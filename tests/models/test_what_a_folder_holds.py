"""What lies behind links, in whose hands; lengths, tokens and prompts that a model has room for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from conftest import build_model, perturb

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.core.outputs import read_json
from bge_cocktail.core.runs import files_under, hash_path
from bge_cocktail.merging.merge import merge
from bge_cocktail.models.embed import embed, truncated
from bge_cocktail.models.encoder import CachedEncoder, load_encoder
from bge_cocktail.models.layout import declared_length, positions_of
from bge_cocktail.options import EncodeOptions, MergeOptions

Cli = Callable[..., Result]


def modular(model: Path, folder: Path) -> Path:
    """The same model with its transformer in a folder of its own."""
    folder.mkdir()
    inner = folder / "0_Transformer"
    inner.mkdir()
    for file in model.iterdir():
        if file.is_dir():
            shutil.copytree(file, folder / file.name)
        elif file.name in ("modules.json", "config_sentence_transformers.json"):
            shutil.copy(file, folder / file.name)
        else:
            shutil.copy(file, inner / file.name)
    modules = read_json(folder / "modules.json")
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def linked(model: Path, folder: Path, name: str) -> Path:
    """A model folder in which one sub-folder is a link out of it."""
    whole = modular(model, folder)
    (whole / name).rename(folder.with_name(f"{folder.name}-{name}"))
    (whole / name).symlink_to(folder.with_name(f"{folder.name}-{name}"))
    return whole


def test_a_hash_sees_what_lies_behind_links(tiny: Path, tmp_path: Path) -> None:
    model = linked(tiny, tmp_path / "model", "0_Transformer")
    assert hash_path(model) == hash_path(modular(tiny, tmp_path / "plain"))
    other = perturb(tiny, tmp_path / "other", 1)
    (model / "0_Transformer").unlink()
    (model / "0_Transformer").symlink_to(other)
    assert hash_path(model) != hash_path(tmp_path / "plain")


def test_the_cache_and_compare_tell_what_a_link_points_at(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    model = linked(tiny, tmp_path / "model", "0_Transformer")
    cache = ["--cache-dir", tmp_path / "cache"]
    before = CachedEncoder(model, EncodeOptions(cache_dir=tmp_path / "cache")).encode_text(["the red fox"])
    (model / "0_Transformer").unlink()
    (model / "0_Transformer").symlink_to(perturb(tiny, tmp_path / "other", 1, 0.2))
    after = CachedEncoder(model, EncodeOptions(cache_dir=tmp_path / "cache")).encode_text(["the red fox"])
    fresh = CachedEncoder(model, EncodeOptions(cache=False)).encode_text(["the red fox"])
    assert np.array_equal(after, fresh)
    assert not np.allclose(before, after)
    task = shutil.copytree(beir, tmp_path / "task")
    shutil.move(task / "qrels", tmp_path / "qrels-one")
    shutil.copytree(tmp_path / "qrels-one", tmp_path / "qrels-two")
    lines = (tmp_path / "qrels-two/test.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "qrels-two/test.tsv").write_text("".join(lines[:-3]))
    for number, name in enumerate(("one", "two")):
        (task / "qrels").unlink(missing_ok=True)
        (task / "qrels").symlink_to(tmp_path / f"qrels-{name}")
        cli("evaluate", f"{name}={tiny}", "--target", task, *cache, "-o", tmp_path / f"out{number}")
    result = cli("compare", tmp_path / "out0", tmp_path / "out1", code=1)
    assert "has other data in" in result.stderr


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/file").write_text("x")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/self").symlink_to(tmp_path / "a/self")
    assert [path.name for path in files_under(tmp_path / "a")] == ["file"]


@pytest.mark.parametrize("name", ["0_Transformer", "1_Pooling"])
def test_a_merge_of_linked_modules_is_whole(tiny: Path, nudged: list[Path], tmp_path: Path, name: str) -> None:
    model = linked(tiny, tmp_path / "model", name)
    merge([model, modular(nudged[0], tmp_path / "second")], tmp_path / "out")
    merge([modular(tiny, tmp_path / "plain"), tmp_path / "second"], tmp_path / "same")
    texts = ["the red fox", "a blue car"]
    assert np.array_equal(embed(load_encoder(tmp_path / "out"), texts), embed(load_encoder(tmp_path / "same"), texts))
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_a_merge_copies_what_a_model_needs_and_no_more(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "secret").write_text("s")
    (model / "notes.txt").symlink_to(tmp_path / "secret")
    (model / "modeling_own.py").write_text("raise SystemExit")
    (model / "LICENSE").write_text("MIT")
    config = {**read_json(model / "config.json"), "auto_map": {"AutoModel": "modeling_own.Own"}}
    (model / "config.json").write_text(json.dumps(config))
    merge([model, tiny], tmp_path / "out")
    assert not (tmp_path / "out/notes.txt").exists()
    assert not (tmp_path / "out/modeling_own.py").exists()
    assert "auto_map" not in read_json(tmp_path / "out/config.json")
    assert (tmp_path / "out/LICENSE").read_text() == "MIT"
    assert "modeling_own.py, notes.txt" in caplog.text
    assert "names code of its own (auto_map)" in caplog.text


def test_a_link_to_a_private_file_is_refused(tiny: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    shutil.move(model / "tokenizer_config.json", tmp_path / "private.json")
    (tmp_path / "private.json").chmod(0o600)
    (model / "tokenizer_config.json").symlink_to(tmp_path / "private.json")
    with pytest.raises(DataError, match="which not everybody may read; put a copy of it in its place"):
        merge([model, tiny], tmp_path / "out")
    (tmp_path / "private.json").chmod(0o644)
    merge([model, tiny], tmp_path / "out")


def test_heads_in_other_files_are_said(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import torch

    model = shutil.copytree(tiny, tmp_path / "model")
    torch.save({"weight": torch.ones(2, 2)}, model / "colbert_linear.pt")
    merge([model, tiny], tmp_path / "out")
    assert "not part of the merge, and not copied" in caplog.text
    assert "colbert_linear.pt" in caplog.text


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/model.safetensors"])
def test_weights_elsewhere_are_refused_everywhere(cli: Cli, tiny: Path, beir: Path, tmp_path: Path, name: str) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    for arguments in (["evaluate", model, "--target", beir], ["merge", model, tiny], ["mine", beir, "-m", model]):
        assert "leads out of the folder" in cli(*arguments, "-o", tmp_path / "out", code=1).stderr


def test_an_adapter_beside_a_whole_model_is_refused(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x", "peft_type": "LORA"}))
    for arguments in (["evaluate", model, "--target", beir], ["merge", model, tiny], ["train", beir, "-m", model]):
        said = cli(*arguments, "-o", tmp_path / "out", code=1).stderr
        assert "holds an adapter (adapter_config.json) beside a whole model" in said


@pytest.mark.parametrize(
    ("config", "room"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "camembert", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 66}, 64),
        ({"model_type": "t5"}, None),
    ],
)
def test_positions(config: dict[str, object], room: int | None) -> None:
    assert positions_of(config) == room


def build_roberta(folder: Path, tiny: Path, length: int | None) -> Path:
    """A model of RoBERTa's kind with 66 rows of positions, of which 2 are before the first token."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    shutil.copytree(tiny, folder)
    config = read_json(folder / "config.json")
    (folder / "model.safetensors").unlink()
    made = XLMRobertaConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
        pad_token_id=1,
        type_vocab_size=1,
    )
    XLMRobertaModel(made).save_pretrained(folder)
    tokenizer = {**read_json(folder / "tokenizer_config.json"), "model_max_length": 10**30}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    settings = {} if length is None else {"max_seq_length": length}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("length", [None, 66])
def test_robertas_have_room_for_fewer_tokens_than_positions(tiny: Path, tmp_path: Path, length: int | None) -> None:
    folder = build_roberta(tmp_path / "roberta", tiny, length)
    assert declared_length(folder) == 64
    model = load_encoder(folder)
    assert model.max_seq_length == 64
    assert embed(model, ["the red fox " * 100]).shape[0] == 1
    with pytest.raises(UsageError, match="max_length=65 is more than the model's 64 positions"):
        load_encoder(folder, max_length=65)
    merge([folder, perturb(folder, tmp_path / "second", 1)], tmp_path / "out")
    assert read_json(tmp_path / "out/sentence_bert_config.json")["max_seq_length"] == 64


def test_tokens_that_the_model_has_no_embeddings_for(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = shutil.copytree(tiny, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    before = len(tokenizer)
    tokenizer.add_tokens(["zylograph", "quux"])
    tokenizer.save_pretrained(model)
    for arguments in (["evaluate", model, "--target", beir], ["train", beir, "-m", model], ["mine", beir, "-m", model]):
        said = cli(*arguments, "-o", tmp_path / "out", code=1).stderr
        assert f"the tokenizer knows {before + 2} tokens, the model has embeddings for {before}" in said


def test_a_prompt_that_leaves_no_room(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    prompt = "the red fox and the blue car and the green bird "
    for arguments in (
        ["mine", beir, "-m", tiny, "--max-length", 8, "--query-prompt", prompt],
        ["train", beir, "-m", tiny, "--query-max-length", 8, "--query-prompt", prompt],
        ["evaluate", tiny, "--target", beir, "--max-length", 8, "--query-prompt", prompt],
    ):
        said = cli(*arguments, "-o", tmp_path / "out", code=2).stderr
        assert "the prompt and the model's own tokens take 13 of at most 8 tokens, so that no room is left" in said
    with pytest.raises(UsageError, match="the model's own tokens take 2 of at most 2 tokens"):
        embed(load_encoder(tiny, max_length=2), ["the red fox"])


def test_texts_that_are_cut_are_counted(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = CachedEncoder(tiny, EncodeOptions(cache=False, max_length=8))
    caplog.set_level("INFO", "bge_cocktail")
    encoder.encode_document(["the red fox", "the red fox rides over the green bird and the car", "a blue car"])
    assert "1 of 3 documents are longer than 8 tokens and were cut there" in caplog.text


def test_long_texts_are_cut_before_they_are_tokenised(tiny: Path) -> None:
    assert len(truncated("x " * 10**7, 512)) == 1 << 17
    assert truncated("a b", 512) == "a b"
    model = load_encoder(tiny)
    long = "the red fox " * 200_000
    assert np.array_equal(embed(model, [long]), embed(model, ["the red fox " * 1000]))


def test_a_merge_of_a_linked_hub_cache(tiny: Path, tmp_path: Path) -> None:
    """Snapshots of the hub's cache are links to blobs outside of their folder."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/abc"
    blobs.mkdir()
    for file in files_under(tiny):
        place = snapshot / file.relative_to(tiny)
        place.parent.mkdir(parents=True, exist_ok=True)
        blob = blobs / f"blob{len(list(blobs.iterdir()))}"
        shutil.copy(file, blob)
        blob.chmod(0o600)  # as with a umask of 077
        place.symlink_to(os.path.relpath(blob, place.parent))
    assert hash_path(snapshot) == hash_path(tiny)
    merge([snapshot, build_model(tmp_path / "again")], tmp_path / "out", MergeOptions(weights=[1, 0]))
    assert np.array_equal(
        embed(load_encoder(tmp_path / "out"), ["the red fox"]), embed(load_encoder(tiny), ["the red fox"])
    )


def test_a_plain_folder_of_a_careful_user_merges(tiny: Path, tmp_path: Path) -> None:
    """It is merged through links to its own files, which only their owner may read."""
    plain = tmp_path / "plain"
    shutil.copytree(tiny, plain, ignore=shutil.ignore_patterns("modules.json", "*_Pooling", "*_Normalize"))
    for file in files_under(plain):
        file.chmod(0o600)
    merge([plain], tmp_path / "out", MergeOptions(pooling="mean"))
    assert (tmp_path / "out/tokenizer.json").is_file()
