"""What computes embeddings when a model is served: token ids in, embeddings out. Torch here; exports in `runtime`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from bge_cocktail.core.devices import choose_device, resolve_precision
from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.core.outputs import read_object
from bge_cocktail.core.runs import RUN_FILE, hash_path
from bge_cocktail.models.cache import Embeddings
from bge_cocktail.models.embed import compute_in_bf16, tokens_at_once, truncated
from bge_cocktail.models.encoder import load_encoder
from bge_cocktail.models.prompts import SETTINGS_FILE, Prompts, Role, model_prompts
from bge_cocktail.options import ServeOptions

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Ids = Sequence[int]
# static embeddings are a mean of any number of tokens; of more than these nobody asks
STATIC_LENGTH = 8192


class Backend(Protocol):
    """A loaded model that is served.

    Attributes:
        prompts: What is put before texts.
        hash: Of its folder: another model in the same place is another model.
        dimensions: Of an embedding.
        smaller: Fewer dimensions that may be asked for.
        max_length: The longest text in tokens.
        batch_tokens: Tokens that are best computed at once.
    """

    prompts: Prompts
    hash: str
    dimensions: int
    smaller: list[int]
    max_length: int
    batch_tokens: int

    def tokenize(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """Return the ids of texts with the prompt of a role and special tokens, cut at the longest."""
        ...

    def wrap(self, ids: Ids, role: Role) -> list[int]:
        """Return ids that stand for a text as `tokenize` would: prompt and special tokens around them, cut.

        Raises:
            UsageError: Ids that the tokenizer doesn't have.
        """
        ...

    def embed(self, batch: Sequence[Ids], role: Role) -> Embeddings:
        """Embed texts of nearly equal length; unit norm, shape (texts, dimensions)."""
        ...


class Tokens:
    """A fast tokenizer with a model's prompts, truncation and special tokens.

    Args:
        path: tokenizer.json.
        prompts: What is put before texts.
        max_length: The longest text in tokens.
        special: Whether special tokens go around texts; static embeddings have none.
    """

    def __init__(self, path: Path, prompts: Prompts, max_length: int, *, special: bool = True) -> None:
        from tokenizers import Tokenizer

        if not path.is_file():
            raise DataError(f"{path} is missing; which serving needs; bge-cocktail doctor --fix writes it")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.size = self._tokenizer.get_vocab_size()
        self.prompts = prompts
        self.max_length = max_length
        self._special = special
        # what the tokenizer puts behind a text: it stays when a text is cut
        ends = self._tokenizer.encode("x", add_special_tokens=special).special_tokens_mask
        self.behind = next((place for place, special in enumerate(reversed(ends)) if not special), 0)

    def tokenize(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """See `Backend`."""
        prompt = self.prompts.of(role)
        whole = [prompt + truncated(text, self.max_length) for text in texts]
        return [
            self._cut(encoding.ids)
            for encoding in self._tokenizer.encode_batch(whole, add_special_tokens=self._special)
        ]

    def wrap(self, ids: Ids, role: Role) -> list[int]:
        """See `Backend`."""
        if wrong := [one for one in ids if not 0 <= one < self.size]:
            raise UsageError(f"token {wrong[0]} is none of this model's {self.size} tokens; send texts, or its own ids")
        around: list[int] = self._tokenizer.encode(self.prompts.of(role), add_special_tokens=self._special).ids
        split = len(around) - self.behind
        return self._cut([*around[:split], *ids, *around[split:]])

    def _cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.max_length:
            return ids
        kept = self.max_length - self.behind
        return [*ids[:kept], *ids[len(ids) - self.behind :]]


def padded(batch: Sequence[Ids], padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and attention mask of texts, padded on the right, both of shape (texts, tokens), int64."""
    longest = max(map(len, batch))
    ids = np.full((len(batch), longest), padding, np.int64)
    mask = np.zeros((len(batch), longest), np.int64)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return ids, mask


class TorchBackend:
    """A sentence-transformers folder, computed by torch; see `Backend`.

    Args:
        folder: The model.
        options: Device, precision, length.
    """

    def __init__(self, folder: Path, options: ServeOptions) -> None:
        import torch

        from bge_cocktail.models.layout import transformer_folder

        device = choose_device(options.device)
        self.hash = hash_path(folder)
        self._model: SentenceTransformer = load_encoder(folder, device=device, max_length=options.max_length)
        self._model.eval()
        for weights in (*self._model.parameters(), *self._model.buffers()):
            # a file that is mapped and then replaced under the server would end it (SIGBUS)
            weights.data = weights.data.clone()
        precision: Literal["fp32", "bf16"] = (
            "bf16" if resolve_precision(options.precision, device) in ("bf16", "fp16") else "fp32"
        )
        if precision == "bf16":
            compute_in_bf16(self._model)
        self.prompts = model_prompts(folder)
        self.dimensions = int(self._model.get_embedding_dimension() or 0)
        self.smaller = smaller_dimensions(folder, options, self.dimensions)
        self._static = not hasattr(self._model[0], "auto_model")
        self.max_length = STATIC_LENGTH if self._static else int(self._model.max_seq_length or 512)
        self.batch_tokens = options.batch_tokens or tokens_at_once(self._model.device.type, precision)
        tokenizer = transformer_folder(folder) / "tokenizer.json"
        self._tokens = Tokens(tokenizer, self.prompts, self.max_length, special=not self._static)
        self.padding = int(getattr(self._model.tokenizer, "pad_token_id", 0) or 0)
        self._torch = torch
        pooling = next((module for module in self._model if hasattr(module, "include_prompt")), None)
        self._mask_prompt = pooling is not None and not pooling.include_prompt

    def tokenize(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """See `Backend`."""
        return self._tokens.tokenize(texts, role)

    def wrap(self, ids: Ids, role: Role) -> list[int]:
        """See `Backend`."""
        return self._tokens.wrap(ids, role)

    def embed(self, batch: Sequence[Ids], role: Role) -> Embeddings:
        """See `Backend`."""
        torch, device = self._torch, self._model.device
        features: dict[str, Any]
        if self._static:  # texts end to end, and where each begins
            starts = np.cumsum([0, *(len(ids) for ids in batch[:-1])])
            joined = np.array([one for ids in batch for one in ids], np.int64)
            features = {"input_ids": torch.from_numpy(joined), "offsets": torch.from_numpy(starts)}
            features = {name: value.to(device) for name, value in features.items()}
        else:
            ids, mask = padded(batch, self.padding)
            features = {
                "input_ids": torch.from_numpy(ids).to(device),
                "attention_mask": torch.from_numpy(mask).to(device),
            }
        if self._mask_prompt and self.prompts.of(role):
            # as sentence-transformers counts it: the prompt with special tokens, less those behind it
            features["prompt_length"] = len(self._tokens.wrap([], role)) - self._tokens.behind
        with torch.inference_mode():
            embeddings: Embeddings = self._model(features)["sentence_embedding"].float().cpu().numpy()
        return unit(embeddings)


def unit(embeddings: Embeddings) -> Embeddings:
    """Return embeddings at unit norm, shape (texts, dimensions)."""
    scaled: Embeddings = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    return scaled


def smaller_dimensions(folder: Path, options: ServeOptions, dimensions: int) -> list[int]:
    """Return the smaller numbers of dimensions that a model was tuned for, and those that the user allows.

    Raises:
        UsageError: More dimensions than the model has.
    """
    tuned: list[int] = []
    for file, keys in ((RUN_FILE, ("options", "matryoshka")), (SETTINGS_FILE, ("matryoshka_dims",))):
        value: Any = read_object(folder / file) if (folder / file).is_file() else {}
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        tuned += [size for size in value if isinstance(size, int)] if isinstance(value, list) else []
    return with_allowed(tuned, options, dimensions)


def with_allowed(tuned: Sequence[int], options: ServeOptions, dimensions: int) -> list[int]:
    """Return the smaller numbers of dimensions, those that the user allows among them.

    Raises:
        UsageError: More dimensions than the model has.
    """
    if wrong := [size for size in options.dimensions if not 0 < size <= dimensions]:
        raise UsageError(f"`dimensions={wrong[0]}`: the model has {dimensions}")
    return sorted({size for size in (*tuned, *options.dimensions) if 0 < size < dimensions})
