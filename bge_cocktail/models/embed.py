"""A loaded model and texts to embeddings, in batches of nearly equal length, each text tokenised once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.devices import enough_memory
from bge_cocktail.core.errors import CocktailError, UsageError
from bge_cocktail.core.progress import progress
from bge_cocktail.models.cache import Embeddings, TokenNumbers
from bge_cocktail.models.layout import declared_length
from bge_cocktail.models.tokens import TOKENISED_AT_ONCE, Packer, TokenisedTexts, tokenise

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

# embeddings that stay on their device before they are fetched together
_WAITING = 1 << 15


def embed(
    model: SentenceTransformer,
    texts: Sequence[str],
    *,
    prompt: str = "",
    precision: Literal["fp32", "bf16"] = "fp32",
    batch_tokens: int = 0,
    label: str = "texts",
    on_tokens: Callable[[TokenNumbers], None] | None = None,
    pack: Packer | None = None,
) -> Embeddings:
    """Embed texts in batches of nearly equal length.

    Texts are sorted by their number of tokens and cut into batches by a budget of tokens: sorting by
    characters, as libraries do, leaves much of what is computed to padding.

    Args:
        model: The model.
        texts: Any number of texts, also none.
        prompt: Put before every text.
        precision: ``bf16`` computes in bfloat16 where the device can; the model's weights stay as they are.
        batch_tokens: Tokens in a batch, padding too; 0 chooses for the device.
        label: Names the work in the progress bar.
        on_tokens: Told what the tokenizer made of the texts.
        pack: Makes a packed batch of some of them (see `packing.packer`); without it, batches are padded.

    Returns:
        Unit-norm embeddings, shape (texts, dimensions).

    Raises:
        CocktailError: The model gave NaN or infinite numbers.
        UsageError: Prompt and length leave no room for a text.
    """
    import torch

    if not len(texts):
        return np.empty((0, model.get_embedding_dimension()), np.float32)
    in_bf16 = precision == "bf16" or next(model[0].parameters(), torch.empty(0)).dtype == torch.bfloat16
    budget = batch_tokens or tokens_at_once(model.device.type, "bf16" if in_bf16 else "fp32")
    overhead = check_room(model, prompt)
    limit = model.max_seq_length or NO_LIMIT
    texts = [truncated(text, limit) for text in texts]
    tokens = tokenise(model, texts, prompt)
    whole, unknown = _whole(model, texts, prompt, tokens, limit)
    if on_tokens is not None:
        on_tokens(np.stack(np.broadcast_arrays(whole, unknown, overhead, limit), axis=1).astype(np.uint32))
    batches = batches_by_tokens(np.minimum(whole, limit).tolist(), budget, packed=pack is not None)
    rows: list[Tensor] = []
    done: list[Embeddings] = []
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16")
    memory = enough_memory(label, "embed with a smaller `batch_tokens` or `max_length`")
    model.eval()
    with progress(label, len(texts)) as advance, autocast, memory, torch.inference_mode():
        for batch in batches:
            rows.append(_forward(model, texts, batch, prompt, tokens, pack))
            if sum(map(len, rows)) >= _WAITING:  # for each batch, a device would wait
                done.append(torch.cat(rows).float().cpu().numpy())
                rows = []
            advance(len(batch))
        if rows:
            done.append(torch.cat(rows).float().cpu().numpy())
    embeddings = np.empty((len(texts), done[0].shape[1]), np.float32)
    embeddings[np.concatenate(batches)] = np.concatenate(done)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        bad = int(np.flatnonzero(~np.isfinite(norms[:, 0]))[0])
        raise CocktailError(f"the model gives NaN or infinite embeddings, first for: {texts[bad][:80]!r}")
    embeddings /= np.maximum(norms, 1e-12)
    return embeddings


def _forward(
    model: SentenceTransformer,
    texts: Sequence[str],
    batch: list[int],
    prompt: str,
    tokens: TokenisedTexts | None,
    pack: Packer | None,
) -> Tensor:
    """Return what a model makes of a batch, still on its device."""
    from sentence_transformers.util import batch_to_device, truncate_embeddings

    if tokens is None:
        features = model.preprocess([texts[place] for place in batch], prompt=prompt or None)
    else:
        features = tokens.padded(batch) if pack is None else pack(tokens, batch)
    vectors = model(batch_to_device(features, model.device))["sentence_embedding"]
    cut: Tensor = truncate_embeddings(vectors, model.truncate_dim)
    return cut


def compute_in_bf16(model: SentenceTransformer) -> bool:
    """Turn a model's transformer to bfloat16 for good; what follows it (pooling, Dense) stays in float32.

    Casting the weights once is quicker than having autocast do it in every batch. Not for models that are trained.

    Returns:
        Whether it has a transformer that could be turned.
    """
    import torch

    first = model[0]
    if not hasattr(first, "auto_model"):
        return False
    first.auto_model.to(torch.bfloat16)

    def in_full(_module: object, _inputs: object, features: Any) -> Any:
        return {name: one.float() if _is_bf16(one) else one for name, one in features.items()}

    first.register_forward_hook(in_full)
    return True


def _is_bf16(value: object) -> bool:
    return str(getattr(value, "dtype", "")) == "torch.bfloat16"


def token_counts(model: SentenceTransformer, texts: Sequence[str], prompt: str = "") -> list[int]:
    """Tokens of each text with its prompt, all of them; characters / 4 without a tokenizer."""
    return _count_tokens(model, texts, prompt)[0]


def _count_tokens(model: SentenceTransformer, texts: Sequence[str], prompt: str) -> tuple[list[int], list[int]]:
    """Return the tokens of each text with its prompt, and how many of them are the one for unknown words."""
    sign = getattr(model.tokenizer, "unk_token_id", None)
    counts: list[int] = []
    unknown: list[int] = []
    # what the tokenizer knows of each token takes a hundred bytes and more
    for start in range(0, len(texts), TOKENISED_AT_ONCE):
        some = [prompt + text for text in texts[start : start + TOKENISED_AT_ONCE]]
        try:
            tokens = model.tokenizer(some, add_special_tokens=True)["input_ids"]
        except (AttributeError, TypeError, KeyError):
            return [2 + len(prompt + text) // 4 for text in texts], [0] * len(texts)
        counts += [len(ids) for ids in tokens]
        unknown += [0 if sign is None else ids.count(sign) for ids in tokens]
    return counts, unknown


def _whole(
    model: SentenceTransformer, texts: Sequence[str], prompt: str, tokens: TokenisedTexts | None, limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tokens of each text, those that are cut off too, and how many of them are the one for unknown words.

    Only texts that reach the limit are tokenised again, to see what is cut off.
    """
    if tokens is None:
        counts, unknown = _count_tokens(model, texts, prompt)
        return np.array(counts), np.array(unknown)
    sign = getattr(model.tokenizer, "unk_token_id", None)
    whole, of_unknown = tokens.lengths.copy(), tokens.of_token(-1 if sign is None else sign)
    cut = np.flatnonzero(whole >= limit)
    if len(cut):
        whole[cut], of_unknown[cut] = _count_tokens(model, [texts[place] for place in cut.tolist()], prompt)
    return whole, of_unknown


NO_LIMIT = 10**9
# far more than any token has: what lies behind is beyond the limit of tokens
_CHARACTERS_OF_TOKEN, _CHARACTERS = 64, 1 << 17


def truncated(text: str, limit: int) -> str:
    """Return a text without what a model can't read for its length, so that megabytes are not tokenised in vain."""
    return text[: max(_CHARACTERS, _CHARACTERS_OF_TOKEN * limit)] if limit < NO_LIMIT else text


def check_room(model: SentenceTransformer, prompt: str, length: int | None = None) -> int:
    """Return how many tokens prompt and special tokens take.

    Args:
        model: Its tokenizer counts.
        prompt: Put before every text.
        length: The longest text, if it isn't the model's.

    Raises:
        UsageError: They leave no room, so that every text would be embedded alike.
    """
    limit = length or model.max_seq_length or NO_LIMIT
    taken = token_counts(model, [""], prompt)[0]
    if taken >= limit:
        what = "the prompt and the model's own tokens take" if prompt else "the model's own tokens take"
        raise UsageError(
            f"{what} {taken} of at most {limit} tokens, so that no room is left for any text; raise `max_length`"
            + (" or shorten the prompt" if prompt else "")
        )
    return taken


# measured on two cores with MiniLM: larger batches lose more to padding and caches than they gain, in bf16 later
_TOKENS = {("cpu", "fp32"): 2048, ("cpu", "bf16"): 4096}
_TOKENS_OF_TRAINING = {**_TOKENS, ("mps", "fp32"): 4096}
# of each model in turn, with gradients for the weights of a merge
TOKENS_OF_MERGING = 4096


def tokens_at_once(device: str, precision: str, *, training: bool = False) -> int:
    """Return how many tokens, padding too, are best computed at once.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``.
        precision: ``fp32``, ``bf16``, ...
        training: Whether there is a backward pass, which keeps more of each token.
    """
    if training:
        return _TOKENS_OF_TRAINING.get((device, precision), 16384)
    return _TOKENS.get((device, precision), 65536)


def batches_by_tokens(lengths: Sequence[int], budget: int, *, packed: bool = False) -> list[list[int]]:
    """Return indices sorted from long to short, cut into batches.

    Args:
        lengths: Tokens of each text.
        budget: What a batch keeps to: its longest text x its texts; packed, its tokens.
        packed: Whether batches have no padding.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    batches: list[list[int]] = []
    tokens = 0
    for index in order:
        tokens = tokens + lengths[index] if packed or not batches else lengths[batches[-1][0]] * (len(batches[-1]) + 1)
        if batches and tokens <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            tokens = lengths[index]
    return batches


class TokenCounter:
    """Counts tokens with a model's own tokenizer, without loading the model.

    Args:
        folder: The model's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.limit = declared_length(folder)
        """The longest text that the model reads, in tokens; None if it doesn't say."""

    def __call__(self, text: str) -> int:
        """Tokens of a text, those that the model adds at its ends too."""
        return len(self._tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"])

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._folder, local_files_only=True, trust_remote_code=False)
