"""Encoding: equal to sentence-transformers, prompts as declared, no text embedded twice, no network."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import perturb, python
from hypothesis import given
from hypothesis import strategies as st

from bge_cocktail.core.errors import CocktailError, DataError, UsageError
from bge_cocktail.core.outputs import read_json
from bge_cocktail.models.cache import MERGE_FILES_ABOVE, EmbeddingCache
from bge_cocktail.models.embed import batches_by_tokens, embed
from bge_cocktail.models.encoder import CachedEncoder, load_encoder
from bge_cocktail.models.folder import model_folder
from bge_cocktail.models.layout import make_portable
from bge_cocktail.models.prompts import model_prompts, set_prompts
from bge_cocktail.options import EncodeOptions

TEXTS = ["the red dog runs", "boat", "who sings in the small garden near the river ?", "boat", "where"]


def test_equals_sentence_transformers(tiny: Path) -> None:
    model = load_encoder(tiny, device="cpu")
    ours = embed(model, TEXTS, batch_tokens=16)
    assert np.abs(ours - model.encode(TEXTS)).max() < 1e-6
    assert np.allclose(np.linalg.norm(ours, axis=1), 1)
    assert embed(model, []).shape == (0, 32)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=80), st.integers(1, 3000))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = batches_by_tokens(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= budget


def test_prompts_are_applied_as_declared(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "prompted")
    set_prompts(folder, {"query": "what ", "passage": "the "})
    plain = CachedEncoder(tiny)
    declared = CachedEncoder(folder)
    assert np.allclose(declared.encode_query(["dog"]), plain.encode_text(["what dog"]), atol=1e-6)
    assert np.allclose(declared.encode_document(["dog"]), plain.encode_text(["the dog"]), atol=1e-6)
    assert np.allclose(declared.encode_text(["dog"]), plain.encode_text(["dog"]), atol=1e-6)
    chosen = CachedEncoder(folder, EncodeOptions(query_prompt="none", document_prompt="e5-document"))
    assert np.allclose(chosen.encode_query(["dog"]), plain.encode_text(["dog"]), atol=1e-6)
    assert chosen.prompts.document == "passage: "
    # and as sentence-transformers itself applies them
    model = load_encoder(folder, device="cpu")
    assert np.allclose(declared.encode_query(TEXTS), model.encode_query(TEXTS), atol=1e-6)


def test_the_default_prompt_is_for_texts_without_a_role(tiny: Path, tmp_path: Path) -> None:
    import json

    folder = shutil.copytree(tiny, tmp_path / "default")
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({**read_json(path), "prompts": {"x": "small "}, "default_prompt_name": "x"}))
    encoder = CachedEncoder(folder)
    model = load_encoder(folder, device="cpu")
    assert np.allclose(encoder.encode_text(TEXTS), model.encode(TEXTS), atol=1e-6)
    assert np.allclose(encoder.encode_query(TEXTS), model.encode_query(TEXTS), atol=1e-6)


def test_no_text_is_embedded_twice(tiny: Path) -> None:
    first = CachedEncoder(tiny)
    found = first.encode_query(TEXTS)
    assert first.embedded == 4
    second = CachedEncoder(tiny)
    again = second.encode_query([*TEXTS[::-1], "new"])
    assert second.embedded == 1
    assert np.array_equal(again[:5], found[::-1])
    assert CachedEncoder(tiny, EncodeOptions(cache=False)).encode_query(TEXTS).shape == (5, 32)


def test_blocks_that_are_done_are_kept(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off in the third block: the first two are in the cache, and the rest gives the same vectors."""
    import bge_cocktail.models.encoder as encoding

    texts = [f"{one} {two}" for one in ("red", "blue", "grey") for two in ("dog", "cat", "boat")]
    expected = CachedEncoder(tiny, EncodeOptions(cache=False)).encode_query(texts)
    monkeypatch.setattr(encoding, "BLOCK", 2)
    real, calls = encoding.embed, 0

    def cut_off(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(encoding, "embed", cut_off)
    with pytest.raises(KeyboardInterrupt):
        CachedEncoder(tiny).encode_query(texts)
    again = CachedEncoder(tiny)
    assert np.allclose(again.encode_query(texts), expected, atol=1e-6)
    assert again.embedded == len(texts) - 4


def test_what_an_embedding_depends_on_is_in_the_key(tiny: Path, tmp_path: Path) -> None:
    base = CachedEncoder(tiny)
    found = base.encode_query(TEXTS)
    for options in (
        EncodeOptions(query_prompt="what "),
        EncodeOptions(precision="bf16"),
        EncodeOptions(max_length=8),
    ):
        other = CachedEncoder(tiny, options)
        other.encode_query(TEXTS)
        assert other.embedded == 4, options
    # another model under the same name is another model
    place = shutil.copytree(tiny, tmp_path / "model")
    assert np.array_equal(CachedEncoder(place).encode_query(TEXTS), found)
    shutil.rmtree(place)
    perturb(tiny, place, seed=9, scale=0.5)
    swapped = CachedEncoder(place)
    assert np.abs(swapped.encode_query(TEXTS) - found).max() > 0.01
    assert swapped.embedded == 4


def test_half_precision_weights_are_computed_with_in_full(tiny: Path, tmp_path: Path) -> None:
    import torch

    from bge_cocktail.merging.merge import merge
    from bge_cocktail.options import MergeOptions

    merge([tiny, tiny], tmp_path / "half", MergeOptions(dtype="float16"))
    model = load_encoder(tmp_path / "half", device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_plain_folder_is_refused(tiny: Path, tmp_path: Path) -> None:
    plain = shutil.copytree(tiny, tmp_path / "plain")
    (plain / "modules.json").unlink()
    with pytest.raises(DataError, match="its pooling is unknown"):
        load_encoder(plain)


def test_other_similarities_are_said(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import json

    folder = shutil.copytree(tiny, tmp_path / "dot")
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({**read_json(path), "similarity_fn_name": "dot"}))
    load_encoder(folder, device="cpu")
    assert "declares similarity 'dot'" in caplog.text


def test_a_cache_that_can_not_be_written_is_no_end(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    encoder = CachedEncoder(tiny, EncodeOptions(cache_dir=tmp_path / "file"))
    assert encoder.encode_query(TEXTS).shape == (5, 32)
    assert "embeddings are not kept" in caplog.text


def test_no_document_prompt_stays_none(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "e5")
    set_prompts(folder, {"passage": "passage: "})
    assert model_prompts(folder).document == "passage: "
    set_prompts(folder, {"document": ""})
    assert model_prompts(folder).document == ""


def test_the_layout_of_newer_modules(tiny: Path, tmp_path: Path) -> None:
    """A Dense module as 6.2 writes it; keys that older versions refuse are gone, others can't be lost unseen."""
    import json

    from sentence_transformers.models import Dense

    model = load_encoder(tiny, device="cpu")
    model.append(Dense(32, 8))
    model.save_pretrained(str(tmp_path / "dense"), create_model_card=False)
    make_portable(tmp_path / "dense", max_length=48)
    config = read_json(tmp_path / "dense/3_Dense/config.json")
    assert config.keys() == {"in_features", "out_features", "bias", "activation_function"}
    assert np.array_equal(load_encoder(tmp_path / "dense", device="cpu").encode(TEXTS), model.encode(TEXTS))
    path = tmp_path / "dense/sentence_bert_config.json"
    path.write_text(json.dumps({**read_json(path), "transformer_task": "fill-mask"}))
    with pytest.raises(DataError, match="transformer_task can't be said"):
        make_portable(tmp_path / "dense")


def test_a_cache_of_many_files_is_joined(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((MERGE_FILES_ABOVE * 2 + 3, 4)).astype(np.float32)
    names = [f"text {number}" for number in range(len(rows))]
    reader = EmbeddingCache(tmp_path, {"model": "m"})
    for name, row in zip(names, rows, strict=True):
        EmbeddingCache(tmp_path, {"model": "m"}).put([name], row[None], np.array([[9, 1, 2, 512]], np.uint32))
        found, tokens, known = reader.get([name])
        assert tokens.tolist() == [[9, 1, 2, 512]]
        assert known.all()
        assert np.array_equal(found[0], row)
    assert len(list(reader.folder.glob("*.npy"))) <= MERGE_FILES_ABOVE
    found, _, known = EmbeddingCache(tmp_path, {"model": "m"}).get([*names, "unknown"])
    assert known.tolist() == [True] * len(names) + [False]
    assert np.array_equal(found[:-1], rows)


def test_nan_embeddings_are_an_error(tiny: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(tiny, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][:] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CocktailError, match="NaN or infinite embeddings, first for: 'boat'"):
        CachedEncoder(folder).encode_query(["boat"])


def test_unknown_device() -> None:
    from bge_cocktail.core.devices import choose_device

    with pytest.raises(UsageError, match="device 'gpu' can't be used here"):
        choose_device("gpu")


@pytest.mark.parametrize("kind", ["folder", "file", "path", "spaces"])
def test_no_model_there(tmp_path: Path, kind: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    name = {"folder": tmp_path / "folder", "file": tmp_path / "file", "path": "./none/x", "spaces": "a b"}[kind]
    with pytest.raises((DataError, UsageError), match="model folder|is a file"):
        model_folder(name)


def test_a_hub_name_out_of_reach_fails_fast(tmp_path: Path) -> None:
    code = (
        "import time; t = time.monotonic()\n"
        "from bge_cocktail.models.folder import model_folder\n"
        "from bge_cocktail.core.errors import DataError\n"
        "import huggingface_hub; t = time.monotonic()\n"
        "try: model_folder('BAAI/bge-small-en-v1.5')\n"
        "except DataError as error: print(round(time.monotonic() - t, 2), error)\n"
    )
    # an address that never answers, as behind a closed network (RFC 5737 keeps it for documentation)
    far = python(code, HF_HOME=str(tmp_path), HF_ENDPOINT="http://192.0.2.1", HF_HUB_OFFLINE="0")
    seconds, message = far.stdout.split(" ", 1)
    assert float(seconds) < 5, far.stdout
    assert "the hub doesn't answer" in message
    assert "hf download BAAI/bge-small-en-v1.5" in message
    offline = python(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    seconds, message = offline.stdout.split(" ", 1)
    assert float(seconds) < 1
    assert "HF_HUB_OFFLINE is set" in message


def test_a_cached_hub_name_needs_no_network(tiny: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub/models--someone--tiny/snapshots/abc"
    shutil.copytree(tiny, snapshot)
    (tmp_path / "hub/models--someone--tiny/refs").mkdir()
    (tmp_path / "hub/models--someone--tiny/refs/main").write_text("abc")
    code = (
        "from bge_cocktail import CachedEncoder\n"
        "encoder = CachedEncoder('someone/tiny'); print(encoder.folder, encoder.encode_query(['dog']).shape)"
    )
    result = python(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert result.stdout.split(" ", 1) == [str(snapshot), "(1, 32)\n"], result.stderr
    # another program fetched only the configuration: that is no model
    (snapshot / "model.safetensors").unlink()
    result = python(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert "is not in the local hub cache and HF_HUB_OFFLINE is set" in result.stderr


def test_local_folders_make_no_connection(tiny: Path, beir: Path, tmp_path: Path) -> None:
    """Load, mine, train and merge with every way out of the process counted."""
    code = f"""
import socket
calls = []
def refuse(*args, **kwargs):
    calls.append(args)
    raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from pathlib import Path
from bge_cocktail import mine, read_records, train, merge, evaluate, open_task, CachedEncoder
from bge_cocktail.options import TrainOptions
from bge_cocktail.data.beir import read_beir
model, data, out = {str(tiny)!r}, Path({str(beir)!r}), Path({str(tmp_path)!r})
records = mine(read_records(data), CachedEncoder(model)).records
train(model, records, out / "tuned", TrainOptions(epochs=1, batch_size=8, negatives=1), dev=read_beir(data, "dev"))
merge([model, out / "tuned"], out / "merged")
evaluate(CachedEncoder(out / "merged"), [open_task(data, "target")])
print("calls", len(calls), calls[:3])
"""
    result = python(code, HF_HUB_OFFLINE="0", BGE_COCKTAIL_CACHE=str(tmp_path / "cache"))
    assert result.stdout.strip().endswith("calls 0 []"), result.stdout + result.stderr


def test_portable_layout_reads_the_same(tiny: Path, tmp_path: Path) -> None:
    """A folder as the newest sentence-transformers writes it, made portable: same vectors, prompts, length."""
    set_up = load_encoder(tiny, device="cpu")
    set_up.prompts = {"query": "what ", "document": ""}
    set_up.save_pretrained(str(tmp_path / "new"), create_model_card=False)
    expected = load_encoder(tmp_path / "new", device="cpu")
    expected.max_seq_length = 48
    make_portable(tmp_path / "new", max_length=48)
    modules = read_json(tmp_path / "new/modules.json")
    assert [module["type"] for module in modules] == [
        f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize")
    ]
    pooling = read_json(tmp_path / "new/1_Pooling/config.json")
    assert pooling["word_embedding_dimension"] == 32
    assert pooling["pooling_mode_mean_tokens"] is True
    assert not pooling.keys() & {"embedding_dimension", "pooling_mode"}
    assert read_json(tmp_path / "new/sentence_bert_config.json")["max_seq_length"] == 48
    model = load_encoder(tmp_path / "new", device="cpu")
    assert model.max_seq_length == 48
    assert model.prompts == expected.prompts
    assert np.array_equal(model.encode_query(TEXTS), expected.encode_query(TEXTS))
    before = {path.name: path.read_bytes() for path in (tmp_path / "new").rglob("*.json")}
    make_portable(tmp_path / "new")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "new").rglob("*.json")}


def test_the_model_is_loaded_only_for_new_texts(tiny: Path) -> None:
    CachedEncoder(tiny).encode_document(TEXTS)
    code = (
        "import sys; from bge_cocktail import CachedEncoder; "
        f"CachedEncoder({str(tiny)!r}).encode_document({TEXTS!r}); print('torch' in sys.modules)"
    )
    start = time.monotonic()
    assert python(code).stdout.strip() == "False"
    assert time.monotonic() - start < 5
