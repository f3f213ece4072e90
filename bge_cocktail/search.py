"""Exact nearest documents with FAISS."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.cache import Embeddings

BLOCK = 1024


def top_k(queries: Embeddings, documents: Embeddings, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k most similar documents of each query, by inner product.

    Args:
        queries: Shape (queries, dimensions).
        documents: Shape (documents, dimensions).
        k: How many; fewer come back when there are fewer documents.

    Returns:
        Similarities from high to low and document rows, both of shape (queries, min(k, documents)). Equal
        similarities are in the order of rows.
    """
    import faiss

    index = faiss.IndexFlatIP(documents.shape[1])
    index.add(np.ascontiguousarray(documents, np.float32))
    k = min(k, len(documents))
    similarities = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), BLOCK):
        block = np.ascontiguousarray(queries[start : start + BLOCK], np.float32)
        similarities[start : start + BLOCK], rows[start : start + BLOCK] = index.search(block, k)
    order = np.lexsort((rows, -similarities), axis=1)
    return np.take_along_axis(similarities, order, 1), np.take_along_axis(rows, order, 1)
