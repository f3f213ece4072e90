"""Retrieval in stages: embeddings joined with words, the best read again by a cross-encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bge_cocktail.records.beir import Judged
from bge_cocktail.reranker import Reranker
from bge_cocktail.tasks.score import Run
from bge_cocktail.wordsearch import top_by_words

# of reciprocal rank fusion, as its paper has it
RANK_OFFSET = 60


def run_by_words(judged: Judged, depth: int) -> dict[str, dict[str, float]]:
    """The documents that share words with each query (BM25), best first."""
    document_ids = list(judged.corpus)
    found = top_by_words(list(judged.queries.values()), list(judged.corpus.values()), depth)
    return {
        query: ordered({document_ids[row]: score for row, score in zip(rows, scores, strict=True) if row >= 0}, depth)
        for query, rows, scores in zip(judged.queries, found.rows.tolist(), found.similarities.tolist(), strict=True)
    }


def fused(runs: Sequence[Run], depth: int) -> dict[str, dict[str, float]]:
    """Reciprocal rank fusion: a document's score is the sum of ``1 / (60 + rank)`` over the runs.

    (Cormack, Clarke and Buettcher 2009, doi:10.1145/1571941.1572114.)

    Args:
        runs: Of the same queries.
        depth: Documents kept of each query.
    """
    joined: dict[str, dict[str, float]] = {}
    for query in runs[0]:
        scores: dict[str, float] = {}
        for run in runs:
            for rank, document in enumerate(run.get(query, ()), start=1):
                scores[document] = scores.get(document, 0.0) + 1 / (RANK_OFFSET + rank)
        joined[query] = ordered(scores, depth)
    return joined


def reranked(run: Run, judged: Judged, reranker: Reranker, depth: int) -> dict[str, dict[str, float]]:
    """The first documents of each query in the order of a cross-encoder's scores; the others stay behind them.

    Args:
        run: What was found.
        judged: The texts.
        reranker: Scores pairs of query and document.
        depth: Documents of each query that it reads.
    """
    firsts = {query: list(found)[:depth] for query, found in run.items()}
    pairs = [(judged.queries[query], judged.corpus[one]) for query, first in firsts.items() for one in first]
    scores = iter(np.asarray(reranker(pairs), float).tolist() if pairs else [])
    result = {}
    for query, found in run.items():
        read = ordered({one: next(scores) for one in firsts[query]}, depth)
        lowest = min(read.values(), default=0.0)
        rest = list(found)[depth:]
        result[query] = {**read, **{one: lowest - rank for rank, one in enumerate(rest, start=1)}}
    return result


def ordered(scores: Mapping[str, float], depth: int) -> dict[str, float]:
    """Documents by score, equal ones (in float32) by id, both descending, as trec_eval does."""
    single = {document: float(np.float32(score)) for document, score in scores.items()}
    ranked = sorted(single, key=lambda document: (single[document], document), reverse=True)
    return {document: single[document] for document in ranked[:depth]}
