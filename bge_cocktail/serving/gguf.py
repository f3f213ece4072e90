"""BERT encoders as GGUF files, for llama.cpp and Ollama (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bge_cocktail.core.errors import MissingExtra, UsageError
from bge_cocktail.core.outputs import read_object, write_json
from bge_cocktail.models.cache import Embeddings
from bge_cocktail.models.layout import transformer_folder
from bge_cocktail.models.prompts import Role
from bge_cocktail.serving.backends import Ids, unit
from bge_cocktail.serving.export import Opener, Source, exporters
from bge_cocktail.serving.runtime import EXPORT_FILE

_POOLINGS = {"mean": 1, "cls": 2}
# the names of a layer's tensors in transformers and in llama.cpp
_IN_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_OUTSIDE = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
_NORMAL, _UNKNOWN, _CONTROL, _UNUSED = 1, 2, 3, 5


@exporters("gguf")
def to_gguf(source: Source, new: Path) -> Opener:
    """A GGUF file with float16 weights, for llama.cpp and Ollama; of uncased BERT encoders."""
    try:
        import gguf
    except ImportError:
        raise MissingExtra("gguf", "gguf") from None
    profile = source.profile
    config = read_object(transformer_folder(source.folder) / "config.json")
    tokenizer = read_object(transformer_folder(source.folder) / "tokenizer.json")
    _refuse_others(source, config, tokenizer)
    writer = gguf.GGUFWriter(str(new / "model.gguf"), "bert")
    writer.add_name(profile.folder.name)
    length = profile.max_length or config["max_position_embeddings"]
    writer.add_context_length(length)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config.get("layer_norm_eps", 1e-12))
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType(_POOLINGS[profile.poolings[0]]))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_tokenizer(writer, tokenizer, config)
    _add_tensors(writer, transformer_folder(source.folder), length)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    described: dict[str, Any] = {
        "to": "gguf",
        "runtime": "llama.cpp",
        "graph": "model.gguf",
        "prompts": asdict(profile.prompts),
    }
    described |= {"dimensions": profile.dimensions, "smaller": [], "max_length": length, "padding": 0, "inputs": []}
    write_json(new / EXPORT_FILE, described)
    return lambda: LlamaBackend(new / "model.gguf", source)


def _refuse_others(source: Source, config: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    profile = source.profile
    others = set(profile.modules) - {"Transformer", "Pooling", "Normalize"}
    normaliser = tokenizer.get("normalizer") or {}
    reasons = [
        f"its architecture is {profile.architecture}" if profile.architecture != "bert" else "",
        f"llama.cpp knows no {', '.join(sorted(others))}" if others else "",
        f"llama.cpp can't pool {' + '.join(profile.poolings)}"
        if list(profile.poolings[:2]) not in (["mean"], ["cls"])
        else "",
        "" if normaliser.get("lowercase") else "llama.cpp lowers the case of all BERT texts, and this one is cased",
        f"its activation is {config.get('hidden_act')}" if config.get("hidden_act", "gelu") != "gelu" else "",
    ]
    if said := [reason for reason in reasons if reason]:
        raise UsageError(f"{profile.name} can't be written as GGUF here: {'; '.join(said)}")


def _add_tokenizer(writer: Any, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    special = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", []) if token.get("special")}
    size = max(config["vocab_size"], 1 + max(vocabulary.values()))
    tokens = [f"[PAD{number}]" for number in range(size)]
    kinds = [_UNUSED] * size
    for token, number in {**vocabulary, **special}.items():
        kinds[number] = _CONTROL if token in special else _NORMAL
        # llama.cpp marks the beginning of a word, where BERT marks what goes on
        tokens[number] = token if token in special else token[2:] if token.startswith("##") else f"\u2581{token}"
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_type_count(config.get("type_vocab_size", 2))
    for token, add in (
        ("[CLS]", writer.add_bos_token_id),
        ("[SEP]", writer.add_eos_token_id),
        ("[SEP]", writer.add_sep_token_id),
        ("[UNK]", writer.add_unk_token_id),
        ("[PAD]", writer.add_pad_token_id),
        ("[MASK]", writer.add_mask_token_id),
    ):
        if token in vocabulary:
            add(vocabulary[token])


def _add_tensors(writer: Any, folder: Path, length: int) -> None:
    from safetensors.torch import load_file

    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            known = _name_of(name.removeprefix("bert."))
            if known is None:
                continue
            values = np.ascontiguousarray(tensor.float().numpy())
            if known.startswith("position_embd"):
                values = values[:length]  # no more positions than tokens: llama.cpp cuts where the model does
            # norms, biases and what is added to tokens stay in float32, as llama.cpp's own converter has them
            whole = values.ndim == 1 or known.startswith(("position_embd", "token_types"))
            writer.add_tensor(known, values if whole else values.astype(np.float16))


def _name_of(name: str) -> str | None:
    """Return llama.cpp's name of a tensor; None for what embeddings don't use, such as the pooler."""
    stem, _, kind = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{kind}"
    parts = stem.split(".")
    if parts[:2] == ["encoder", "layer"] and ".".join(parts[3:]) in _IN_LAYER:
        return f"blk.{parts[2]}.{_IN_LAYER['.'.join(parts[3:])]}.{kind}"
    return None


class LlamaBackend:
    """A GGUF file run by llama.cpp, to judge it: llama.cpp reads the texts with its own tokenizer; see `Backend`.

    Args:
        path: The file.
        source: For prompts and length.
    """

    def __init__(self, path: Path, source: Source) -> None:
        try:
            from llama_cpp import Llama
        except ImportError:
            raise MissingExtra("llama-cpp-python (which judges a GGUF file; or `judge=False`)", "gguf") from None
        self.prompts = source.profile.prompts
        self.hash = ""
        self.dimensions = source.profile.dimensions or 0
        self.smaller: list[int] = []
        self.max_length = source.profile.max_length or 512
        self.batch_tokens = self.max_length
        self._model = Llama(
            str(path),
            embedding=True,
            n_ctx=self.max_length,
            n_batch=self.max_length,
            n_ubatch=self.max_length,
            verbose=False,
        )
        self._texts: dict[tuple[int, ...], str] = {}

    def tokenize(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """See `Backend`."""
        ids = []
        for text in texts:
            whole = self.prompts.of(role) + text
            ids.append(self._model.tokenize(whole.encode("utf-8", "replace"))[: self.max_length])
            self._texts[tuple(ids[-1])] = whole
        return ids

    def wrap(self, ids: Ids, role: Role) -> list[int]:
        """See `Backend`; ids are llama.cpp's own."""
        return list(ids)

    def embed(self, batch: Sequence[Ids], role: Role) -> Embeddings:
        """See `Backend`."""
        texts = [self._texts[tuple(ids)] for ids in batch]
        return unit(np.asarray(self._model.embed(texts, normalize=True, truncate=True), np.float32))
