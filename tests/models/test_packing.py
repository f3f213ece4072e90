"""Packed batches give what padded ones give, in every architecture that can have them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import Result
from conftest import ROOT
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer

from bge_cocktail.core.errors import UsageError
from bge_cocktail.models import packing
from bge_cocktail.models.embed import batches_by_tokens, embed
from bge_cocktail.models.encoder import load_encoder
from bge_cocktail.models.packing import packer
from bge_cocktail.models.tokens import PACKED, token_count, tokenise
from bge_cocktail.options import PredictOptions
from bge_cocktail.training.classifier.model import load_classifier
from bge_cocktail.training.classifier.predict import logits_of

Cli = Callable[..., Result]
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
# what each architecture wants to be told beside its size
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"pad_token_id": 0, "type_vocab_size": 1},
    "xlm-roberta": {"pad_token_id": 0, "type_vocab_size": 1},
    "electra": {"embedding_size": 32},
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64},
    "modernbert": {
        "local_attention": 8,  # tokens see four to each side
        "global_attn_every_n_layers": 3,
        **dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"], 0),
    },
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
}
TEXTS = [
    "red apple",
    "the big dog runs in the garden near the river and the small cat sleeps under the old house",
    "a",
    "who rides the fast train over the hill",
    "which bird sings beside the street where the young horse jumps",
]


def small_model(name: str, tiny: Path, folder: Path, pooling: str = "mean", **config: Any) -> SentenceTransformer:
    """A model of an architecture, with random weights and the tokenizer of the small BERT."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    given = {**SMALL, **ARCHITECTURES.get(name, {}), "vocab_size": len(tokenizer), **config}
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(name, **given))
    for parameter in model.parameters():  # fresh position embeddings are so small that a shift would not be seen
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modules = [Transformer(str(folder), max_seq_length=48), Pooling(given.get("dim", 32), pooling), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu")


def gradients(model: SentenceTransformer, features: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Embeddings of a batch, and the gradients of a sum of them."""
    model.zero_grad()
    embeddings = model(dict(features))["sentence_embedding"]
    (embeddings * torch.arange(embeddings.numel()).view(embeddings.shape).cos()).sum().backward()
    return embeddings.detach(), [one.grad.clone() for one in model.parameters() if one.grad is not None]


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_values_and_gradients_are_those_of_padded_batches(tiny: Path, tmp_path: Path, name: str, pooling: str) -> None:
    model = small_model(name, tiny, tmp_path, pooling).eval()
    tokens = tokenise(model, TEXTS, "the ")
    assert tokens is not None
    places = [3, 1, 0, 4, 2]
    padded = tokens.padded(places)
    expected, of_padded = gradients(model, padded)  # with transformers' own attention
    pack = packer(model, "on", "fp32")
    assert pack is not None
    packed = pack(tokens, places)
    assert packed["input_ids"].shape == (1, int(tokens.lengths.sum()))
    assert token_count(packed) < token_count(padded)
    found, of_packed = gradients(model, packed)
    assert torch.allclose(found, expected, atol=1e-5)
    for mine, theirs in zip(of_packed, of_padded, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5 * max(1, float(theirs.abs().max())))
    again, _ = gradients(model, padded)  # and it still reads padded batches
    assert torch.allclose(again, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["mpnet", "t5"])
def test_what_can_not_be_packed_is_padded_or_refused(tiny: Path, tmp_path: Path, name: str) -> None:
    model = small_model("bert" if name == "t5" else name, tiny, tmp_path)
    if name == "t5":  # of which sentence-transformers loads the encoder
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
        transformers.T5EncoderModel(transformers.T5Config(**sizes)).save_pretrained(tmp_path / "t5")
        transformers.AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "t5")
        modules = [Transformer(str(tmp_path / "t5"), max_seq_length=48), Pooling(32, "mean")]
        model = SentenceTransformer(modules=modules, device="cpu")
    before = embed(model, TEXTS)
    with pytest.raises(UsageError, match="packed=on: "):
        packer(model, "on", "fp32")
    assert np.array_equal(embed(model, TEXTS), before)
    assert packer(model, "auto", "fp32") is None
    assert packer(model, "off", "fp32") is None


def test_an_architecture_that_would_embed_otherwise_is_found_out(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model("roberta", tiny, tmp_path)
    monkeypatch.setattr(packing, "_first_position", lambda _: 0)  # as of a model whose table begins elsewhere
    with pytest.raises(UsageError, match="other embeddings"):
        packer(model, "on", "fp32")
    assert model[0].auto_model.config._attn_implementation == "sdpa"


def test_attention_with_dropout_is_that_of_each_text(tiny: Path, tmp_path: Path) -> None:
    """Nested tensors, of which CUDA has a quick kernel, tell texts apart as the padded form does."""
    generator = torch.Generator().manual_seed(0)
    bounds = torch.tensor([0, 3, 10, 11], dtype=torch.int32)
    streams = [torch.randn(11, 4, 8, generator=generator) for _ in range(3)]
    found = packing._flash_with_dropout(*streams, bounds, 7, None, False, 0.0)
    assert torch.allclose(found, packing._by_text(*streams, bounds, 7, None, False, None, 0.0), atol=1e-5)


@pytest.mark.parametrize("texts", [TEXTS, ["a"], TEXTS * 40])
def test_packed_embeddings_are_the_padded_ones(tiny: Path, texts: list[str]) -> None:
    model = load_encoder(tiny, device="cpu")
    expected = embed(model, texts, prompt="the ")
    pack = packer(model, "on", "fp32")
    assert np.allclose(embed(model, texts, prompt="the ", pack=pack, batch_tokens=64), expected, atol=1e-5)


def test_packed_batches_keep_to_their_tokens() -> None:
    lengths = [3, 9, 1, 5, 5, 2]
    batches = batches_by_tokens(lengths, 10, packed=True)
    assert sorted(place for batch in batches for place in batch) == list(range(6))
    assert [sum(lengths[place] for place in batch) for batch in batches] == [9, 10, 6]


@pytest.mark.parametrize("more", [[], ["--gradient-cache"], ["--anchor", "0.1"], ["--lora", "4"]], ids=str)
def test_a_packed_training_learns_the_same(cli: Cli, tiny: Path, beir: Path, tmp_path: Path, more: list[str]) -> None:
    given = ["--epochs", 1, "--batch-size", 4, "--dropout", "0", "--precision", "fp32", "--patience", 0, *more]
    weights = []
    for packed in ("on", "off"):
        cli("train", beir, "-m", tiny, "-o", tmp_path / packed, "--packed", packed, *given)
        weights.append(load_file(tmp_path / packed / "model.safetensors"))
    base = load_file(tiny / "model.safetensors")
    moved = max(float((weights[1][name] - base[name]).abs().max()) for name in base)
    apart = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in base)
    assert moved > 1e-5
    assert apart < 0.1 * moved


def test_a_packed_classifier_predicts_the_same(cli: Cli, tiny: Path, labelled: Path, tmp_path: Path) -> None:
    given = ["-m", tiny, "--epochs", 1, "--dropout", "0", "--precision", "fp32"]
    for packed in ("on", "off"):
        cli("classify", "train", labelled, *given, "-o", tmp_path / packed, "--packed", packed)
    logits = [
        logits_of(load_classifier(tmp_path / trained, device="cpu").model, TEXTS, "head", PredictOptions(packed=packed))
        for trained in ("on", "off")
        for packed in ("off", "on")
    ]
    assert all(np.allclose(one, logits[0], atol=1e-4) for one in logits[1:])


def test_where_a_training_can_not_pack_it_says_so(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    result = cli("train", beir, "-m", tiny, "-o", tmp_path / "out", "--packed", "on", "--compile", code=2)
    assert "compile" in result.output
    assert not (tmp_path / "out").exists()


def test_bounds_are_named_as_the_libraries_read_them() -> None:
    from transformers.modeling_flash_attention_utils import FlashAttentionKwargs

    assert PACKED in FlashAttentionKwargs.__annotations__


def test_the_script_for_a_card_runs_without_one() -> None:
    """All of its parts, on the processor and with a small model; nothing fails, and what must be equal is."""
    command = [sys.executable, str(ROOT / "scripts/gpu_check.py"), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    assert [figure for figure in figures if "error" in figure] == []
    missed = [figure["name"] for figure in figures[:-1] if figure["met"] is False]
    assert all("a second" in name for name in missed), missed  # how fast it is, a laptop may decide
    names = " ".join(figure["name"] for figure in figures)
    for part in ("packed and padded", "loss, bf16", "train, bf16", "embed", "search", "gradient cache"):
        assert part in names
