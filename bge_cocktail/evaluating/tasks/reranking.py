"""Reranking: whether an encoder puts the relevant ones of a query's own candidates first."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bge_cocktail.data.labelled import Candidates, read_candidates
from bge_cocktail.evaluating.intervals import bootstrap_interval
from bge_cocktail.evaluating.measures import measure_run
from bge_cocktail.evaluating.scores import FOUND_SHOWN, Role, Score, tasks
from bge_cocktail.evaluating.tasks.retrieval import ordered
from bge_cocktail.models.encoder import Encoder
from bge_cocktail.options import EvaluateOptions

METRICS = ("MAP", "MRR@10", "nDCG@10")


@tasks("reranking")
def reranking(encoder: Encoder, path: Path, name: str, role: Role, options: EvaluateOptions) -> list[Score]:
    """The order of each query's own candidates by similarity: MAP, MRR@10, nDCG@10."""
    rows = read_candidates(path, options.split)
    queries = encoder.encode_query([row.query for row in rows])
    documents = encoder.encode_document([text for row in rows for text in (*row.positive, *row.negative)])
    run: dict[str, dict[str, float]] = {}
    qrels: dict[str, dict[str, int]] = {}
    start = 0
    for line, row in enumerate(rows):
        query, ids = f"{options.split}:{line + 1}", candidate_ids(row)
        similarities = documents[start : start + len(ids)] @ queries[line]
        start += len(ids)
        run[query] = ordered(dict(zip(ids, similarities.tolist(), strict=True)), len(ids))
        qrels[query] = {one: int(one.startswith("p")) for one in ids}
    found = measure_run(run, qrels, METRICS)
    answers = {
        query: {
            "found": {one: round(value, 4) for one, value in list(found.items())[:FOUND_SHOWN]},
            "ranks": {one: rank for rank, one in enumerate(found, start=1) if qrels[query][one]},
        }
        for query, found in run.items()
    }
    scores = []
    for metric, per_query in found.items():
        values = np.fromiter(per_query.values(), float)
        scores.append(
            Score(
                task=name,
                kind="reranking",
                role=role,
                metric=metric,
                value=float(values.mean()),
                interval=bootstrap_interval(values, confidence=options.confidence, seed=options.seed),
                count=len(values),
                main=metric == METRICS[0],
                per_query=per_query,
                answers=answers if metric == METRICS[0] else {},
            )
        )
    return scores


def candidate_ids(row: Candidates) -> list[str]:
    """``p1``, ``p2``, ... for the relevant ones, ``n1``, ... for the others."""
    return [
        f"{letter}{number + 1}"
        for letter, texts in (("p", row.positive), ("n", row.negative))
        for number in range(len(texts))
    ]
