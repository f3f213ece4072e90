"""Documents that share words with a query (BM25), and the words of texts in any script."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import regex

from bge_cocktail.search.exact import Nearest

# scripts that put no spaces between words
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"


_RUNS = regex.compile(
    rf"[{UNSPACED}\p{{M}}]*[{UNSPACED}][{UNSPACED}\p{{M}}]*|[\p{{L}}\p{{N}}\p{{M}}_--[{UNSPACED}]]+", regex.V1
)
_IS_UNSPACED = regex.compile(rf"[{UNSPACED}]")


def search_words(text: str) -> list[str]:
    """Words in lower case; of scripts without spaces between words, pairs of neighbouring characters.

    The usual index of such scripts: bigrams overlap, so every word of two characters is one of them.
    """
    words: list[str] = []
    for run in _RUNS.findall(unicodedata.normalize("NFC", text).lower()):
        if len(run) > 1 and _IS_UNSPACED.search(run):
            words += [run[start : start + 2] for start in range(len(run) - 1)]
        else:
            words.append(run)
    return words


_BLOCK = 2000


def top_by_words(queries: Sequence[str], documents: Sequence[str], k: int) -> Nearest:
    """Return the k best documents of each query by BM25 (bm25s, arXiv:2407.03618).

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
        top, values = retriever.retrieve(asked, k=depth, show_progress=False, n_threads=1)
        rows.append(np.where(values > 0, top, -1).astype(np.int64))
        scores.append(values.astype(np.float32))
    return Nearest(np.concatenate(scores), np.concatenate(rows))
