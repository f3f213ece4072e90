"""Reranking: whether an encoder puts the relevant ones of a query's own candidates first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bge_cocktail.data.labelled import CANDIDATE_COLUMNS, Candidates, DataFolder, read_candidates
from bge_cocktail.data.record_files import spread
from bge_cocktail.evaluating.measures import measure_run
from bge_cocktail.evaluating.scores import FOUND_SHOWN, Score
from bge_cocktail.evaluating.tasks.retrieval import ordered
from bge_cocktail.evaluating.tasks.task import Task, TaskKind, cut, interval_of, tasks
from bge_cocktail.models.encoder import Encoder
from bge_cocktail.options import EvaluateOptions

METRICS = ("MAP", "MRR@10", "nDCG@10")


class Reranking(TaskKind):
    """The order of each query's own candidates by similarity: MAP, MRR@10, nDCG@10."""

    order = 30
    mteb = ("Reranking", "map_at_1000")

    def recognises(self, folder: DataFolder) -> bool:
        """Return whether rows hold query, positive and negative."""
        return not folder.holds("corpus.jsonl") and folder.first_row().keys() >= CANDIDATE_COLUMNS

    def read(self, folder: DataFolder, split: str) -> list[Candidates]:
        """See `TaskKind.read`."""
        return read_candidates(folder, split)

    def limited(self, data: list[Candidates], limit: int) -> list[Candidates]:
        """See `TaskKind.limited`."""
        return list(spread(data, limit))

    def judge(self, encoder: Encoder, task: Task, options: EvaluateOptions) -> list[Score]:
        """See `TaskKind.judge`."""
        rows: list[Candidates] = task.data(options.split)
        queries = encoder.encode_query([row.query for row in rows])
        documents = encoder.encode_document([text for row in rows for text in (*row.positive, *row.negative)])
        run: dict[str, dict[str, float]] = {}
        qrels: dict[str, dict[str, int]] = {}
        start = 0
        for line, row in enumerate(rows):
            query, ids = f"{options.split}:{line + 1}", row.ids()
            similarities = documents[start : start + len(ids)] @ queries[line]
            start += len(ids)
            run[query] = ordered(dict(zip(ids, similarities.tolist(), strict=True)), len(ids))
            qrels[query] = {candidate: int(candidate.startswith("p")) for candidate in ids}
        answers = {
            query: {
                "found": {name: round(value, 4) for name, value in list(ranking.items())[:FOUND_SHOWN]},
                "ranks": {name: rank for rank, name in enumerate(ranking, start=1) if qrels[query][name]},
            }
            for query, ranking in run.items()
        }
        scores = []
        for metric, per_query in measure_run(run, qrels, METRICS).items():
            values, main = np.fromiter(per_query.values(), float), metric == METRICS[0]
            scores.append(
                task.score(
                    metric,
                    float(values.mean()),
                    interval_of(options)(values),
                    len(values),
                    main=main,
                    per_query=per_query,
                    answers=answers if main else {},
                )
            )
        return scores

    def texts(self, data: list[Candidates], split: str, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the queries, each with its own candidates."""
        return {
            "asked": {
                f"{split}:{line}": {
                    "text": cut(row.query),
                    "wanted": {name: 1 for name in row.ids() if name.startswith("p")},
                    "documents": row.by_id(cut),
                }
                for line, row in enumerate(data, start=1)
            }
        }

    def to_mteb(self, task: Task, split: str, made: Any) -> None:
        """See `TaskKind.to_mteb`."""
        from datasets import Dataset

        rows = {f"q{line}": row for line, row in enumerate(task.data(split), start=1)}
        documents = {f"{query}-{name}": text for query, row in rows.items() for name, text in row.by_id().items()}
        made.dataset = {
            "default": {
                split: {
                    "corpus": Dataset.from_dict({"id": list(documents), "text": list(documents.values())}),
                    "queries": Dataset.from_dict({"id": list(rows), "text": [row.query for row in rows.values()]}),
                    "relevant_docs": {
                        query: {f"{query}-{name}": int(name.startswith("p")) for name in row.ids()}
                        for query, row in rows.items()
                    },
                    "top_ranked": {query: [f"{query}-{name}" for name in row.ids()] for query, row in rows.items()},
                }
            }
        }


tasks("reranking")(Reranking())
