"""Documents that share words with a query: BM25."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bge_cocktail.records.words import search_words
from bge_cocktail.search import Nearest

_BLOCK = 2000


def top_by_words(queries: Sequence[str], documents: Sequence[str], k: int) -> Nearest:
    """The k best documents of each query by BM25 (bm25s, arXiv:2407.03618).

    Args:
        queries: What is asked.
        documents: What is searched.
        k: How many.

    Returns:
        Scores and rows, shape (queries, min(k, documents)); row -1 where a document shares no word with the query.
    """
    import bm25s

    depth = min(k, len(documents))
    words = [search_words(text) for text in documents]
    if not any(words):
        shape = len(queries), depth
        return Nearest(np.zeros(shape, np.float32), np.full(shape, -1, np.int64))
    retriever = bm25s.BM25()
    retriever.index(words, show_progress=False)
    scores, rows = [], []
    for start in range(0, len(queries), _BLOCK):
        asked = [search_words(query) for query in queries[start : start + _BLOCK]]
        found, values = retriever.retrieve(asked, k=depth, show_progress=False, n_threads=1)
        rows.append(np.where(values > 0, found, -1).astype(np.int64))
        scores.append(values.astype(np.float32))
    return Nearest(np.concatenate(scores), np.concatenate(rows))
