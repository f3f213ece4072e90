"""Texts to the features that a classifier takes, in chunks of nearly equal length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bge_cocktail.embed import batches_by_tokens

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

    from bge_cocktail.records.labelled import Text

HEAD_SHARE = 0.25


class Tokens:
    """Tokenised texts, cut at the longest, ready to be padded.

    Args:
        model: For its tokenizer and its longest text.
        texts: Texts, or pairs; of a pair that is too long, the longer text loses its end first.
        truncation: ``head`` keeps the start, ``head+tail`` a quarter from the start and the rest from the end.
    """

    def __init__(self, model: CrossEncoder, texts: Sequence[Text], truncation: str = "head") -> None:
        self._tokenizer = model.tokenizer
        longest = model.max_seq_length
        if truncation == "head+tail":
            texts = keep_ends(model, texts)
        columns = [list(column) for column in zip(*(_both(text) for text in texts), strict=True)]
        self._encoded = self._tokenizer(*columns, truncation=True, max_length=longest) if columns else {}
        self.lengths: list[int] = [len(ids) for ids in self._encoded.get("input_ids", [])]

    def chunks(self, budget: int) -> list[list[int]]:
        """Places of the texts, sorted by length and cut by a budget of tokens, padding too."""
        return batches_by_tokens(self.lengths, budget)

    def features(self, places: Sequence[int]) -> dict[str, Any]:
        """What the model takes, for some of the texts."""
        chosen = {name: [values[place] for place in places] for name, values in self._encoded.items()}
        padded = self._tokenizer.pad(chosen, padding=True, return_tensors="pt")
        return {**padded, "modality": "text"}


def keep_ends(model: CrossEncoder, texts: Sequence[Text]) -> list[Text]:
    """Texts that are too long with their middle cut out: a quarter is from the start, the rest from the end.

    Pairs stay as they are. (Sun et al., arXiv:1905.05583: 128 tokens from the start, 382 from the end.)
    """
    single = [text for text in texts if isinstance(text, str)]
    if len(single) < len(texts):
        return list(texts)
    tokenizer = model.tokenizer
    room = model.max_seq_length - tokenizer.num_special_tokens_to_add()
    head = int(room * HEAD_SHARE)
    offsets = tokenizer(single, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    kept: list[Text] = []
    for text, spans in zip(single, offsets, strict=True):
        cut = len(spans) > room
        kept.append(f"{text[: spans[head - 1][1]]} {text[spans[head - room][0] :]}" if cut else text)
    return kept


def _both(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text
