"""Models that load but aren't whole are refused; pickles are read without running code; damaged caches stop nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from conftest import leftovers
from safetensors.torch import load_file, save_file
from test_checkpoints import as_pickle

from bge_cocktail.core.errors import CocktailError, DataError
from bge_cocktail.core.runs import hash_path
from bge_cocktail.merging.merge import merge
from bge_cocktail.models.cache import EmbeddingCache
from bge_cocktail.models.encoder import CachedEncoder, check_loaded, load_encoder
from bge_cocktail.options import ClassifyOptions, MergeOptions
from bge_cocktail.training.classifier.model import ClassifierConfig, load_classifier, make_classifier, save_classifier

Cli = Callable[..., Result]
Weights = dict[str, torch.Tensor]


def with_weights(model: Path, folder: Path, change: Callable[[Weights], Weights]) -> Path:
    shutil.copytree(model, folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def vectors(folder: Path) -> np.ndarray:
    return CachedEncoder(folder).encode_query(["the red dog", "boat"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda all_: {f"module.{name}": one for name, one in all_.items()}, "lack the weights .* and [0-9]+ more"),
        (lambda all_: {name: one for name, one in all_.items() if "layer.1." not in name}, r"encoder.layer.1\."),
        (
            lambda all_: {name: one for name, one in all_.items() if not name.endswith("output.dense.bias")},
            "output.dense.bias",
        ),
    ],
)
def test_weights_that_the_files_lack(
    change: Callable[[Weights], Weights],
    said: str,
    tiny: Path,
    tmp_path: Path,
    cli: Cli,
    labelled: Path,
) -> None:
    folder = with_weights(tiny, tmp_path / "broken", change)
    with pytest.raises(DataError, match=said):
        load_encoder(folder)
    common = ("-m", folder, "-o", tmp_path / "out", "--device", "cpu")
    assert "lack the weights" in cli("classify", "train", labelled, *common, code=1).output
    assert not leftovers(tmp_path)


def test_names_that_differ_are_no_lack(tiny: Path, tmp_path: Path) -> None:
    """With the architecture's prefix, without the pooler, and as they were called long ago."""
    prefixed = with_weights(tiny, tmp_path / "a", lambda all_: {f"bert.{name}": one for name, one in all_.items()})
    bare = with_weights(
        tiny, tmp_path / "b", lambda all_: {name: one for name, one in all_.items() if "pooler" not in name}
    )
    old = with_weights(
        tiny,
        tmp_path / "c",
        lambda all_: {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): one
            for name, one in all_.items()
        },
    )
    for folder in (prefixed, bare, old):
        assert np.allclose(vectors(folder), vectors(tiny), atol=1e-6), folder


def test_a_head_that_stands_on_the_pooler_needs_it(tiny: Path, tmp_path: Path) -> None:
    model = make_classifier(tiny, ["a", "b"], ClassifyOptions(head="cls"), "cpu")
    (tmp_path / "whole").mkdir()
    save_classifier(model, ClassifierConfig(labels=["a", "b"], max_length=32), tmp_path / "whole", like=tiny)
    load_classifier(tmp_path / "whole")
    broken = with_weights(
        tmp_path / "whole",
        tmp_path / "broken",
        lambda all_: {name: one for name, one in all_.items() if "pooler" not in name},
    )
    with pytest.raises(DataError, match="lack the weights bert.pooler.dense.bias"):
        load_classifier(broken)


def test_a_tokenizer_that_knows_no_word(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "broken")
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(CocktailError, match="its tokenizer knows no word|can't be loaded"):
        load_encoder(folder)


def test_the_check_of_a_whole_model_reads_it_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_encoder(tiny, device="cpu")
    calls: list[object] = []
    monkeypatch.setattr(type(model[0].auto_model), "from_pretrained", lambda *args, **_: calls.append(args))
    check_loaded("tiny", tiny, model[0].auto_model, model.tokenizer)
    assert calls == []


def test_pickled_weights_embed_the_same(tiny: Path, tmp_path: Path) -> None:
    pickled = as_pickle(tiny, tmp_path / "pickled")
    assert np.allclose(vectors(pickled), vectors(tiny), atol=1e-6)
    again = merge([pickled, pickled], tmp_path / "out", MergeOptions(weights=[0.5, 0.5]))
    assert np.allclose(vectors(again.folder), vectors(tiny), atol=1e-5)
    merge([tiny, pickled], tmp_path / "ties", MergeOptions(method="ties", base=str(pickled)))


def test_code_in_a_pickle_is_told_and_not_run(tiny: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
            return exec, (f"open({str(ran)!r}, 'w')", "")

    bad = as_pickle(tiny, tmp_path / "bad")
    torch.save({"embeddings.x": Bomb()}, bad / "pytorch_model.bin")
    with pytest.raises(CocktailError, match="holds more than tensors, such as code, and none is run") as caught:
        load_encoder(bad)
    assert "weights_only" not in str(caught.value)
    assert not ran.exists()


def test_broken_folders_are_no_traceback(tiny: Path, labelled: Path, tmp_path: Path, cli: Cli) -> None:
    cut = shutil.copytree(tiny, tmp_path / "cut")
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[: len(content) // 2])
    common = ("-o", tmp_path / "out", "--device", "cpu")
    assert "Error: " in cli("classify", "train", labelled, "-m", cut, *common, code=1).output
    pooling = shutil.copytree(tiny, tmp_path / "pooling")
    (pooling / "1_Pooling/config.json").unlink()
    said = cli("classify", "train", labelled, "-m", pooling, "--head", "pooled", *common, code=1).output
    assert "can't be loaded" in said


@pytest.mark.parametrize("damage", ["cut", "random", "empty", "other", "nan"])
def test_a_damaged_cache_is_passed_over(
    damage: str, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = vectors(tiny)
    encoder = CachedEncoder(tiny)
    (file,) = encoder._cache(encoder.prompts.query).folder.glob("*.npy")
    content = file.read_bytes()
    if damage == "nan":
        rows = np.load(file)
        rows["embedding"][0] = np.nan
        np.save(file, rows)
    elif damage == "other":
        np.save(file, np.zeros(3))
    else:
        file.write_bytes({"cut": content[:-40], "random": bytes(range(200)), "empty": b""}[damage])
    assert np.array_equal(vectors(tiny), expected)
    assert "remove it" in caplog.text


def test_embeddings_of_another_size_are_passed_over(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path, {"model": "m"}).put(["a"], np.ones((1, 4), np.float32), np.ones((1, 4), np.uint32))
    EmbeddingCache(tmp_path, {"model": "m"}).put(["b"], np.ones((1, 5), np.float32), np.ones((1, 4), np.uint32))
    found, _, known = EmbeddingCache(tmp_path, {"model": "m"}).get(["a", "b"])
    assert found is not None
    assert known.sum() == 1


def test_tuned_weights_can_be_read_by_others(tiny: Path, labelled: Path, tmp_path: Path, cli: Cli) -> None:
    common = ("--epochs", 1, "--device", "cpu", "--precision", "fp32")
    cli("classify", "train", labelled, "-m", tiny, "-o", tmp_path / "out", *common)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir() if path.is_file()}
    plain = tmp_path / "plain"
    plain.write_text("")
    assert modes == {plain.stat().st_mode & 0o777}
    assert hash_path(tmp_path / "out")
    assert json.loads((tmp_path / "out/run.json").read_text())["command"] == "classify train"
