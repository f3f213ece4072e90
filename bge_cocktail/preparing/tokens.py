"""How many tokens a text has for a model."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from bge_cocktail.layout import declared_length


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
