"""Retrieval: the documents that an encoder finds for each query, against the judgements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bge_cocktail.encoding import Encoder
from bge_cocktail.errors import DataError
from bge_cocktail.options import Evaluating
from bge_cocktail.records import normalise, read_judged
from bge_cocktail.records.beir import Judged
from bge_cocktail.search import top_k
from bge_cocktail.statistics import bootstrap_interval
from bge_cocktail.tasks.score import Role, Score, tasks

# documents fetched beyond the depth, so that ties at its edge are broken by id and not by row
TIE_MARGIN = 50


@tasks("retrieval")
def retrieval(encoder: Encoder, path: Path, name: str, role: Role, options: Evaluating) -> list[Score]:
    """Exact search over a corpus (a BEIR folder, or one that `prepare` wrote): nDCG@10, recall, MRR@10, MAP."""
    judged = read_judged(path, options.split)
    values = judge(encoder, judged, options.depth, options.recall_at)
    scores = []
    for metric, per_query in values.items():
        array = np.fromiter(per_query.values(), float)
        interval = bootstrap_interval(array, confidence=options.confidence, seed=options.seed)
        scores.append(
            Score(
                task=name,
                kind="retrieval",
                role=role,
                metric=metric,
                value=float(array.mean()),
                interval=interval,
                count=len(array),
                main=metric == "nDCG@10",
                per_query=per_query,
            )
        )
    return scores


def judge(
    encoder: Encoder, judged: Judged, depth: int = 100, recall_at: Sequence[int] = (10, 100)
) -> dict[str, dict[str, float]]:
    """Metrics of each query.

    Args:
        encoder: Embeds queries and documents.
        judged: Queries, corpus, judgements.
        depth: Documents retrieved for a query.
        recall_at: Ranks at which recall is taken.

    Returns:
        For each metric the value of each query that has a relevant document.

    Raises:
        DataError: No query has one.
    """
    if not any(grade > 0 for grades in judged.qrels.values() for grade in grades.values()):
        raise DataError("no query of this split has a relevant document (a score above 0)")
    run = search_run(encoder, judged, depth)
    return {
        metric: {query: values[metric] for query, values in per_query.items()}
        for per_query in [metrics(run, judged.qrels, depth, recall_at)]
        for metric in next(iter(per_query.values()))
    }


def search_run(encoder: Encoder, judged: Judged, depth: int) -> dict[str, list[str]]:
    """The ids of the documents retrieved for each query, best first.

    Equal similarities (in float32) are ordered by document id, descending, as trec_eval does. Where queries are
    documents themselves, a query doesn't find itself: a document with its id and its text (perhaps after a title) is
    left out, unless it is judged relevant.
    """
    document_ids = list(judged.corpus)
    query_ids = list(judged.queries)
    documents = encoder.encode_document([judged.corpus[name] for name in document_ids])
    queries = encoder.encode_query([judged.queries[name] for name in query_ids])
    similarities, rows = top_k(queries, documents, depth + TIE_MARGIN)
    place = np.empty(len(document_ids), np.int64)  # place of each row among the ids in descending order
    place[sorted(range(len(document_ids)), key=document_ids.__getitem__, reverse=True)] = np.arange(len(document_ids))
    order = np.lexsort((place[rows], -similarities), axis=1)
    ranked = np.take_along_axis(rows, order, 1)

    def is_itself(query: str) -> bool:
        same = normalise(judged.corpus.get(query, "")).endswith(normalise(judged.queries[query]))
        return same and judged.qrels[query].get(query, 0) <= 0

    return {
        query: [name for name in (document_ids[row] for row in line) if name != query or not is_itself(query)][:depth]
        for query, line in zip(query_ids, ranked.tolist(), strict=True)
    }


def metrics(
    run: Mapping[str, Sequence[str]],
    qrels: Mapping[str, Mapping[str, int]],
    depth: int,
    recall_at: Sequence[int],
) -> dict[str, dict[str, float]]:
    """trec_eval's definitions of nDCG (linear gain), recall, reciprocal rank and average precision.

    Args:
        run: Retrieved ids of each query, best first; a query that is missing counts 0.
        qrels: Grades; above 0 is relevant. Queries without a relevant document are left out, as in trec_eval.
        depth: The rank up to which average precision looks.
        recall_at: Ranks at which recall is taken.

    Returns:
        Metrics of each query by name.
    """
    results = {}
    for query, grades in qrels.items():
        relevant = sum(grade > 0 for grade in grades.values())
        if not relevant:
            continue
        gains = np.array([max(grades.get(document, 0), 0) for document in run.get(query, ())], float)
        hits = gains > 0
        found = np.cumsum(hits)
        ranks = np.arange(1, len(gains) + 1)
        ideal = np.sort([grade for grade in grades.values() if grade > 0])[::-1]
        first = int(np.argmax(hits)) + 1 if hits.any() else 0
        results[query] = {
            "nDCG@10": _dcg(gains[:10]) / _dcg(ideal[:10]),
            "MRR@10": 1 / first if 0 < first <= 10 else 0.0,
            f"MAP@{depth}": float((found / ranks)[hits].sum() / relevant),
            **{f"Recall@{k}": float(hits[:k].sum() / relevant) for k in recall_at},
        }
    return results


def _dcg(gains: np.ndarray) -> float:
    return float((gains / np.log2(np.arange(2, len(gains) + 2))).sum())
