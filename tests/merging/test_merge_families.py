"""Every family of models: the merged folder computes what a state dict merged by hand computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WORDS

from bge_cocktail.core.errors import UsageError
from bge_cocktail.merging.merge import merge
from bge_cocktail.options import MergeOptions

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS), "?", "."]
TEXTS = ["the red dog runs", "where is the boat ?", "a small grey bird sings in the garden near the river"]
SMALL: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
}
FAMILIES = {
    "Bert": ({}, "mean"),
    "Roberta": ({}, "cls"),
    "XLMRoberta": ({}, "cls"),
    "MPNet": ({}, "mean"),
    "ModernBert": ({"global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3}, "mean"),
    "Qwen3": ({"num_key_value_heads": 2, "head_dim": 16}, "lasttoken"),
}


def build(folder: Path, family: str, head: str, seed: int, **more: Any) -> Path:
    """A model of two layers with a word tokenizer, as transformers saves it."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **FAMILIES[family][0], **more})
    model = getattr(transformers, f"{family}{head}")(config)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return folder


def hand_merged(one: Path, other: Path, load: Any) -> Any:
    """The first model with 0.25 of its own weights and 0.75 of the other's."""
    first, second = (load(str(path)).eval() for path in (one, other))
    theirs = second.state_dict()
    merged = {
        name: 0.25 * value + 0.75 * theirs[name] if value.is_floating_point() else value
        for name, value in first.state_dict().items()
    }
    first.load_state_dict(merged)
    return first


@pytest.mark.parametrize("family", FAMILIES)
def test_encoders(tmp_path: Path, family: str) -> None:
    from sentence_transformers import SentenceTransformer

    from bge_cocktail.models.encoder import load_encoder

    pooling = FAMILIES[family][1]
    models = []
    for seed in (1, 2):
        plain = build(tmp_path / f"plain{seed}", family, "Model", seed)
        merge([plain], tmp_path / f"model{seed}", MergeOptions(pooling=pooling))  # type: ignore[arg-type]
        models.append(tmp_path / f"model{seed}")
    merge(models, tmp_path / "out", MergeOptions(weights=[0.25, 0.75]))
    expected = hand_merged(*models, lambda path: SentenceTransformer(path, device="cpu")).encode(TEXTS)
    found = load_encoder(tmp_path / "out", device="cpu").encode(TEXTS)
    assert np.abs(found - expected).max() < 1e-6
    alone = load_encoder(models[0], device="cpu").encode(TEXTS)
    assert np.abs(found - alone).max() > 1e-2  # a merge that does nothing would be noticed


@pytest.mark.parametrize(
    ("family", "head", "auto", "more"),
    [
        ("Bert", "ForSequenceClassification", "AutoModelForSequenceClassification", {"num_labels": 3}),
        ("XLMRoberta", "ForSequenceClassification", "AutoModelForSequenceClassification", {"num_labels": 1}),
        ("Bert", "ForMaskedLM", "AutoModelForMaskedLM", {}),
        ("Qwen3", "ForCausalLM", "AutoModelForCausalLM", {"tie_word_embeddings": True}),
        ("Qwen3", "ForCausalLM", "AutoModelForCausalLM", {"tie_word_embeddings": False}),
    ],
)
def test_models_with_a_head(tmp_path: Path, family: str, head: str, auto: str, more: dict[str, Any]) -> None:
    import torch
    import transformers

    models = [build(tmp_path / f"model{seed}", family, head, seed, **more) for seed in (1, 2)]
    merge(models, tmp_path / "out", MergeOptions(weights=[0.25, 0.75]))
    load = getattr(transformers, auto).from_pretrained
    tokens = torch.tensor([[2, 8, 20, 30, 3], [2, 40, 9, 3, 0]])
    features = {"input_ids": tokens, "attention_mask": (tokens != 0).long()}
    with torch.no_grad():
        expected = hand_merged(*models, load)(**features).logits
        found = load(str(tmp_path / "out")).eval()(**features).logits
        alone = load(str(models[0])).eval()(**features).logits
    assert (found - expected).abs().max() < 1e-5
    assert (found - alone).abs().max() > 1e-3


def test_heads_of_another_size_are_left_out(tmp_path: Path) -> None:
    three = build(tmp_path / "three", "Bert", "ForSequenceClassification", 1, num_labels=3)
    five = build(tmp_path / "five", "Bert", "ForSequenceClassification", 2, num_labels=5)
    with pytest.raises(UsageError, match="has the labels LABEL_0, LABEL_1, LABEL_2, LABEL_3, LABEL_4 and not"):
        merge([three, five], tmp_path / "out", MergeOptions(heads="merge"))
    merge([three, five], tmp_path / "out")
    from merge_helpers import tensors_in

    merged, first = tensors_in(tmp_path / "out"), tensors_in(three)
    assert merged["classifier.weight"].tobytes() == first["classifier.weight"].tobytes()
    name = "bert.encoder.layer.0.output.dense.weight"
    assert not np.array_equal(merged[name], first[name])
