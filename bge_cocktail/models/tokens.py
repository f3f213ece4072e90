"""Texts to tokens, once; and batches of them, padded or packed into one stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

Features = dict[str, Any]
# the feature that says where the texts of a packed batch begin and end
PACKED = "cu_seq_lens_q"
# texts that the tokenizer pads to a common length, of nearly the same number of characters
TOKENISED_AT_ONCE = 256


def tokenise(model: SentenceTransformer, texts: Sequence[Any], prompt: str = "") -> TokenisedTexts | None:
    """Return the tokens of texts as a model reads them: with its prompt and special tokens, cut at its length.

    Args:
        model: sentence-transformers' model of texts or of pairs.
        texts: One or more.
        prompt: Put before each.

    Returns:
        Their tokens; None of a model that only looks words up and so makes no rows of tokens.
    """
    import torch

    by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    parts = []
    for start in range(0, len(texts), TOKENISED_AT_ONCE):
        some = [texts[place] for place in by_length[start : start + TOKENISED_AT_ONCE]]
        features = model.preprocess(some, prompt=prompt or None)
        if "attention_mask" not in features:
            return None
        parts.append(features)
    masks = [part["attention_mask"].bool() for part in parts]
    of_tokens = [name for name, one in parts[0].items() if getattr(one, "shape", None) == masks[0].shape]
    streams = {
        name: torch.cat([part[name][mask] for part, mask in zip(parts, masks, strict=True)]) for name in of_tokens
    }
    counts = torch.cat([mask.sum(dim=1) for mask in masks]).numpy()
    alike = {name: one for name, one in parts[0].items() if name not in of_tokens}
    return TokenisedTexts(streams, counts, by_length, model.tokenizer, alike)


class TokenisedTexts:
    """Features of texts, one after the other, without padding.

    Args:
        streams: Features of tokens, by name, shape (tokens of all texts,).
        counts: Tokens of each text in the streams, shape (texts,).
        order: Which text they are of.
        tokenizer: Says what to pad with.
        alike: Other features, alike for all texts.

    Attributes:
        lengths: Tokens of each text, shape (texts,).
    """

    def __init__(
        self,
        streams: Mapping[str, Tensor],
        counts: NDArray[np.int64],
        order: Sequence[int],
        tokenizer: Any,
        alike: Mapping[str, Any],
    ) -> None:
        self._streams, self._alike = streams, alike
        self.lengths: NDArray[np.int64] = np.empty(len(order), np.int64)
        self._starts = np.empty(len(order), np.int64)
        self.lengths[order], self._starts[order] = counts, np.cumsum(counts) - counts
        self._left = getattr(tokenizer, "padding_side", "right") == "left"
        self._padding = {
            "input_ids": getattr(tokenizer, "pad_token_id", None) or 0,
            "token_type_ids": getattr(tokenizer, "pad_token_type_id", None) or 0,
        }

    def of_token(self, token: int) -> NDArray[np.int64]:
        """Return how often a token is in each text, shape (texts,)."""
        hits = np.concatenate([[0], np.cumsum((self._streams["input_ids"] == token).numpy())])
        return np.asarray(hits[self._starts + self.lengths] - hits[self._starts])

    def padded(self, places: Sequence[int]) -> Features:
        """Return the features of some texts, each padded to the longest of them. (texts, tokens)"""
        import torch

        counts = torch.from_numpy(self.lengths[places])
        longest = int(counts.max())
        at = torch.arange(longest)
        used = at >= longest - counts[:, None] if self._left else at < counts[:, None]
        index = self._tokens_of(places)
        rows = {}
        for name, stream in self._streams.items():
            rows[name] = torch.full(used.shape, self._padding.get(name, 0), dtype=stream.dtype)
            rows[name][used] = stream[index]
        return {**rows, **self._alike}

    def packed(self, places: Sequence[int], first_position: int) -> Features:
        """Return the features of some texts as one stream of tokens, without any padding. (1, tokens)

        Args:
            places: The texts.
            first_position: Which position a model gives the first token of a text.

        Returns:
            Also ``position_ids``, ``cu_seq_lens_q`` (where texts begin and end) and ``max_length_q``, as transformers'
            attention and sentence-transformers' pooling read them.
        """
        import torch

        counts = self.lengths[places]
        index = self._tokens_of(places)
        rows = {name: one[index][None] for name, one in self._streams.items() if name != "attention_mask"}
        ends = np.concatenate([[0], np.cumsum(counts)])
        positions = np.arange(ends[-1]) - np.repeat(ends[:-1], counts) + first_position
        bounds = torch.from_numpy(ends.astype(np.int32))
        return {
            **rows,
            **self._alike,
            "position_ids": torch.from_numpy(positions)[None],
            PACKED: bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": int(counts.max()),
            "max_length_k": int(counts.max()),
        }

    def _tokens_of(self, places: Sequence[int]) -> Tensor:
        """Return where in the streams the tokens of some texts are, text after text."""
        import torch

        counts = self.lengths[places]
        before = np.cumsum(counts) - counts
        return torch.from_numpy(np.repeat(self._starts[places] - before, counts) + np.arange(counts.sum()))


Packer = Callable[[TokenisedTexts, list[int]], Features]
"""Makes a packed batch of some texts, as a model reads it."""


def token_count(features: Mapping[str, Any]) -> int:
    """Return how many tokens a batch computes, padding too."""
    return int(features["input_ids"].numel())
