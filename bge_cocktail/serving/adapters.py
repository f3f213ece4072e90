"""Thin adapters: a model as an object of a RAG framework, which applies the model's own prompts by itself.

Each framework's package is imported only when its adapter is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import MissingExtra
from bge_cocktail.models.encoder import CachedEncoder, Encoder
from bge_cocktail.models.profile import model_profile
from bge_cocktail.options import EncodeOptions


def _encoder(model: str | Path | Encoder) -> tuple[str, Encoder]:
    """Return a name for the model, and what embeds; a model that is only named keeps no cache, as texts come and go."""
    if isinstance(model, str | Path):
        profile = model_profile(model)
        return profile.name, CachedEncoder(profile.folder, EncodeOptions(cache=False))
    return str(getattr(model, "name", type(model).__name__)), model


def _lists(embeddings: Any) -> list[list[float]]:
    rows: list[list[float]] = embeddings.tolist()
    return rows


def as_langchain(model: str | Path | Encoder) -> Any:
    """Return a model as LangChain's ``Embeddings``.

    Args:
        model: A folder, a hub name, or anything that embeds (see `Encoder`).

    Raises:
        MissingExtra: langchain-core is not installed.
    """
    try:
        from langchain_core.embeddings import Embeddings
    except ImportError:
        raise MissingExtra("langchain-core", "langchain") from None
    _, encoder = _encoder(model)

    class CocktailEmbeddings(Embeddings):
        """A model of bge-cocktail, with its prompts."""

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return _lists(encoder.encode_document(texts)) if texts else []

        def embed_query(self, text: str) -> list[float]:
            return _lists(encoder.encode_query([text]))[0]

    return CocktailEmbeddings()


def as_llama_index(model: str | Path | Encoder) -> Any:
    """Return a model as LlamaIndex's ``BaseEmbedding``.

    Args:
        model: A folder, a hub name, or anything that embeds (see `Encoder`).

    Raises:
        MissingExtra: llama-index-core is not installed.
    """
    try:
        from llama_index.core.base.embeddings.base import BaseEmbedding
    except ImportError:
        raise MissingExtra("llama-index-core", "llama-index") from None
    name, encoder = _encoder(model)

    class CocktailEmbedding(BaseEmbedding):
        """A model of bge-cocktail, with its prompts."""

        def _get_query_embedding(self, query: str) -> list[float]:
            return _lists(encoder.encode_query([query]))[0]

        def _get_text_embedding(self, text: str) -> list[float]:
            return _lists(encoder.encode_document([text]))[0]

        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return _lists(encoder.encode_document(texts)) if texts else []

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_query_embedding(query)

        async def _aget_text_embedding(self, text: str) -> list[float]:
            return self._get_text_embedding(text)

    return CocktailEmbedding(model_name=name)


def as_chroma(model: str | Path | Encoder) -> Any:
    """Return a model as Chroma's ``EmbeddingFunction``, for documents, with ``embed_query`` for queries.

    Args:
        model: A folder, a hub name, or anything that embeds (see `Encoder`).

    Raises:
        MissingExtra: chromadb is not installed.
    """
    try:
        from chromadb import EmbeddingFunction
    except ImportError:
        raise MissingExtra("chromadb", "chroma") from None
    model_name, encoder = _encoder(model)

    class CocktailFunction(EmbeddingFunction):  # type: ignore[type-arg]
        """A model of bge-cocktail, with its prompts."""

        def __init__(self) -> None:
            pass  # chromadb warns of functions without one

        def __call__(self, input: Sequence[str]) -> list[Any]:
            return list(encoder.encode_document(list(input)))

        def embed_query(self, input: Sequence[str]) -> list[Any]:
            return list(encoder.encode_query(list(input)))

        @staticmethod
        def name() -> str:
            return "bge-cocktail"

        def get_config(self) -> dict[str, Any]:
            return {"model": model_name}

        @staticmethod
        def build_from_config(config: dict[str, Any]) -> Any:
            return as_chroma(config["model"])

    return CocktailFunction()


def as_haystack(model: str | Path | Encoder) -> tuple[Any, Any]:
    """Return a model as two Haystack components: one that embeds a query's text, one that embeds documents.

    Args:
        model: A folder, a hub name, or anything that embeds (see `Encoder`).

    Raises:
        MissingExtra: haystack-ai is not installed.
    """
    try:
        from haystack import Document, component
    except ImportError:
        raise MissingExtra("haystack-ai", "haystack") from None
    from dataclasses import replace

    _, encoder = _encoder(model)

    @component
    class CocktailTextEmbedder:
        """Embeds queries with a model of bge-cocktail and its prompts."""

        @component.output_types(embedding=list[float])
        def run(self, text: str) -> dict[str, Any]:
            """Embed a query."""
            return {"embedding": _lists(encoder.encode_query([text]))[0]}

    @component
    class CocktailDocumentEmbedder:
        """Embeds documents with a model of bge-cocktail and its prompts."""

        @component.output_types(documents=list[Document])
        def run(self, documents: list[Document]) -> dict[str, Any]:
            """Embed documents' contents."""
            if not documents:
                return {"documents": []}
            embeddings = _lists(encoder.encode_document([document.content or "" for document in documents]))
            paired = zip(documents, embeddings, strict=True)
            return {"documents": [replace(document, embedding=embedding) for document, embedding in paired]}

    return CocktailTextEmbedder(), CocktailDocumentEmbedder()
