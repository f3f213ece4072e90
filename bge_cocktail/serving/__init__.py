"""What a model becomes in production: looked over, plugged into frameworks, served, exported, published."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bge_cocktail.serving.adapters import as_chroma, as_haystack, as_langchain, as_llama_index

_HOMES = dict.fromkeys(("as_chroma", "as_haystack", "as_langchain", "as_llama_index"), "adapters")
__all__ = ["as_chroma", "as_haystack", "as_langchain", "as_llama_index"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bge_cocktail.serving' has no attribute '{name}'")
    return getattr(import_module(f"bge_cocktail.serving.{_HOMES[name]}"), name)
