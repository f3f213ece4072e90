"""Retrieval in stages: embeddings joined with words, the best read again by a cross-encoder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np

from bge_cocktail.core.errors import DataError
from bge_cocktail.core.runs import note_finding
from bge_cocktail.data.beir import RetrievalData, is_beir
from bge_cocktail.data.labelled import CANDIDATE_COLUMNS, DataFolder
from bge_cocktail.data.record import normalise
from bge_cocktail.data.record_files import RECORDS_FILE, records_of, spread
from bge_cocktail.data.retrieval import read_retrieval
from bge_cocktail.data.sources import examples_of_rows
from bge_cocktail.evaluating.measures import measure_run
from bge_cocktail.evaluating.scores import FOUND_SHOWN, Run, Score, mean_intervals
from bge_cocktail.evaluating.tasks.task import MapText, Task, TaskKind, cut, tasks
from bge_cocktail.models.encoder import Encoder
from bge_cocktail.models.reranker import Reranker, load_reranker
from bge_cocktail.options import EvaluateOptions
from bge_cocktail.search.bm25 import top_by_words
from bge_cocktail.search.exact import top_k_and_ties

# of reciprocal rank fusion, as its paper has it
RANK_OFFSET = 60


def run_by_words(judged: RetrievalData, depth: int) -> dict[str, dict[str, float]]:
    """Return the documents that share words with each query (BM25), best first."""
    document_ids = list(judged.corpus)
    top = top_by_words(list(judged.queries.values()), list(judged.corpus.values()), depth)
    return {
        query: ordered({document_ids[row]: score for row, score in zip(rows, scores, strict=True) if row >= 0}, depth)
        for query, rows, scores in zip(judged.queries, top.rows.tolist(), top.similarities.tolist(), strict=True)
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


def reranked(run: Run, judged: RetrievalData, reranker: Reranker, depth: int) -> dict[str, dict[str, float]]:
    """Return the first documents of each query in the order of a cross-encoder's scores; the others stay behind them.

    Args:
        run: What was found.
        judged: The texts.
        reranker: Scores pairs of query and document.
        depth: Documents of each query that it reads.
    """
    firsts = {query: list(ranked)[:depth] for query, ranked in run.items()}
    pairs = [(judged.queries[query], judged.corpus[document]) for query, first in firsts.items() for document in first]
    scores = iter(np.asarray(reranker(pairs), float).tolist() if pairs else [])
    result = {}
    for query, ranked in run.items():
        read = ordered({first: next(scores) for first in firsts[query]}, depth)
        lowest = min(read.values(), default=0.0)
        rest = list(ranked)[depth:]
        result[query] = {**read, **{one: lowest - rank for rank, one in enumerate(rest, start=1)}}
    return result


def ordered(scores: Mapping[str, float], depth: int) -> dict[str, float]:
    """Documents by score, equal ones (in float32) by id, both descending, as trec_eval does."""
    single = {document: float(np.float32(score)) for document, score in scores.items()}
    ranked = sorted(single, key=lambda document: (single[document], document), reverse=True)
    return {document: single[document] for document in ranked[:depth]}


log = logging.getLogger(__name__)
# of the texts on a map of a retrieval, so many are queries; the rest are their documents, and others
QUERIES = 1 / 4
# documents beside the judged ones for each query of a first try
_OTHERS = 10


class Retrieval(TaskKind):
    """Exact search over a corpus (a BEIR folder, or one that `prepare` wrote): nDCG, recall, MRR, MAP and others."""

    order = 10
    mteb = ("Retrieval", "ndcg_at_10")

    def recognises(self, folder: DataFolder) -> bool:
        """Return whether it is a BEIR folder, or rows are records."""
        return is_beir(folder.path) or ("query" in (row := folder.first_row()) and not row.keys() >= CANDIDATE_COLUMNS)

    def read(self, folder: DataFolder, split: str) -> RetrievalData:
        """See `TaskKind.read`."""
        if is_beir(folder.path) or not folder.splits or folder.holds(RECORDS_FILE):
            return read_retrieval(folder.path, split)
        examples = examples_of_rows(folder.split_rows(split), str(folder.file(split)))
        return read_retrieval(folder.path, split, records_of(examples, folder.path))

    def limited(self, data: RetrievalData, limit: int) -> RetrievalData:
        """See `TaskKind.limited`; of the corpus, the judged documents stay, and ten others for each query."""
        queries = {name: data.queries[name] for name in spread(list(data.qrels), limit)}
        judged = {document for name in queries for document in data.qrels[name]}
        others = spread([name for name in data.corpus if name not in judged], _OTHERS * limit)
        kept = judged.union(others)
        corpus = {name: text for name, text in data.corpus.items() if name in kept}
        return RetrievalData(corpus, queries, {name: data.qrels[name] for name in queries})

    def judge(self, encoder: Encoder, task: Task, options: EvaluateOptions) -> list[Score]:
        """See `TaskKind.judge`."""
        judged: RetrievalData = task.data(options.split)
        _tell(task.counted(options.split, _count), len(judged.qrels), task.name)
        efficiency: dict[str, float] = {}
        run = staged_run(encoder, judged, options, efficiency)
        measured = judge_run(run, judged, options.metrics)
        values = np.stack([np.fromiter(per_query.values(), float) for per_query in measured.values()], axis=1)
        intervals = mean_intervals(values, confidence=options.confidence, seed=options.seed)
        scores = []
        for (metric, per_query), column, interval in zip(measured.items(), values.T, intervals, strict=True):
            main = metric == options.metrics[0]
            scores.append(
                task.score(
                    metric,
                    float(column.mean()),
                    interval,
                    len(column),
                    main=main,
                    per_query=per_query,
                    run=run if main and options.save_runs else {},
                    answers=_answers(run, judged) if main else {},
                    efficiency=efficiency if main else {},
                )
            )
        return scores

    def texts(self, data: RetrievalData, split: str, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the queries with their judgements, and the documents that answers name."""
        kept = {query for of_model in answers for query in of_model}
        asked = {
            query: {
                "text": cut(text),
                "wanted": {document: grade for document, grade in data.qrels[query].items() if grade > 0},
                "unwanted": [document for document, grade in data.qrels[query].items() if grade <= 0],
            }
            for query, text in data.queries.items()
            if query in kept
        }
        named = {
            document
            for of_model in answers
            for answer in of_model.values()
            for key in ("found", "ranks")
            for document in answer[key]
        }
        return {
            "asked": asked,
            "documents": {name: cut(data.corpus[name]) for name in sorted(named) if name in data.corpus},
        }

    def map_texts(self, data: RetrievalData, count: int, generator: np.random.Generator) -> list[MapText]:
        """Return a draw of queries, their relevant documents, and others."""
        queries = [query for query, grades in data.qrels.items() if any(grade > 0 for grade in grades.values())]
        drawn = [queries[row] for row in sorted(generator.permutation(len(queries))[: max(1, int(count * QUERIES))])]
        relevant = dict.fromkeys(
            document
            for query in drawn
            for document, grade in data.qrels[query].items()
            if grade > 0 and document in data.corpus
        )
        relevant_shown = list(relevant)[: 2 * len(drawn)]
        ids = list(data.corpus)
        room = max(0, count - len(drawn) - len(relevant_shown))
        shuffled = (ids[row] for row in generator.permutation(len(ids)).tolist())
        others = [document for document in shuffled if document not in relevant][:room]
        return [
            *(MapText("query", data.queries[query], "query") for query in drawn),
            *(MapText("document", data.corpus[document], "relevant document") for document in relevant_shown),
            *(MapText("document", data.corpus[document], "other document") for document in others),
        ]

    def to_mteb(self, task: Task, split: str, made: Any) -> None:
        """See `TaskKind.to_mteb`."""
        from datasets import Dataset

        data: RetrievalData = task.data(split)
        made.dataset = {
            "default": {
                split: {
                    "corpus": Dataset.from_dict({"id": list(data.corpus), "text": list(data.corpus.values())}),
                    "queries": Dataset.from_dict({"id": list(data.queries), "text": list(data.queries.values())}),
                    "relevant_docs": {query: dict(data.qrels[query]) for query in data.queries},
                    "top_ranked": None,
                }
            }
        }


tasks("retrieval")(Retrieval())


def judge(
    encoder: Encoder, judged: RetrievalData, depth: int = 100, metrics: Sequence[str] = ("nDCG@10",)
) -> dict[str, dict[str, float]]:
    """Measures of each query.

    Args:
        encoder: Embeds queries and documents.
        judged: Queries, corpus, judgements.
        depth: Documents retrieved for a query.
        metrics: Such as ``Recall@10``; see `ranking.measures`.

    Returns:
        For each measure the value of each query that has a relevant document.

    Raises:
        DataError: No query has one.
    """
    return judge_run(search_run(encoder, judged, depth), judged, metrics)


def judge_run(run: Run, judged: RetrievalData, metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """Measures of a run; see `judge`."""
    if not any(grade > 0 for grades in judged.qrels.values() for grade in grades.values()):
        raise DataError("no query of this split has a relevant document (a score above 0)")
    return measure_run(run, judged.qrels, metrics)


def staged_run(
    encoder: Encoder, judged: RetrievalData, options: EvaluateOptions, efficiency: dict[str, float] | None = None
) -> Run:
    """Return the documents retrieved for each query, in the stages that the options name; see `search_run`."""
    run: Run = search_run(encoder, judged, options.depth, efficiency)
    if options.hybrid:
        by_words = run_by_words(judged, options.depth + 1)
        others = {query: without_itself(query, ranked, judged, options.depth) for query, ranked in by_words.items()}
        run = fused([run, others], options.depth)
    if options.reranker is not None:
        # encoders in tests and of other libraries may not say where they compute
        reranker = _reranker(options.reranker, getattr(encoder, "device", "auto"))
        run = reranked(run, judged, reranker, options.rerank_depth)
    return run


@lru_cache(maxsize=1)
def _reranker(name: str, device: str) -> Reranker:
    """Loaded once for all models and tasks."""
    return load_reranker(name, device=device, logits=True)


def search_run(
    encoder: Encoder, judged: RetrievalData, depth: int, efficiency: dict[str, float] | None = None
) -> dict[str, dict[str, float]]:
    """Return the documents retrieved for each query, best first, with their similarities.

    Equal similarities (in float32) are ordered by document id, descending, as trec_eval does. Where queries are
    documents themselves, a query doesn't find itself: a document with its id and its text (perhaps after a title) is
    left out, unless it is judged relevant.

    Args:
        encoder: Embeds queries and documents.
        judged: Queries, corpus, judgements.
        depth: Documents retrieved for a query.
        efficiency: Takes what `Scorer.efficiency` holds.
    """
    document_ids = sorted(judged.corpus, reverse=True)  # so that of equal ones the lowest row has the highest id
    documents = encoder.encode_document([judged.corpus[name] for name in document_ids])
    queries = encoder.encode_query(list(judged.queries.values()))
    started = time.perf_counter()
    similarities, rows = top_k_and_ties(queries, documents, min(depth + 1, len(document_ids)))
    if efficiency is not None:
        milliseconds = 1000 * (time.perf_counter() - started) / len(queries)
        efficiency |= {
            "documents": len(documents),
            "index_megabytes": documents.nbytes / 1e6,
            "search_ms": milliseconds,
        }
    run = {}
    for query, line, values in zip(judged.queries, rows.tolist(), similarities.tolist(), strict=True):
        named = dict(zip(map(document_ids.__getitem__, line), values, strict=True))
        if query in judged.corpus:
            named = without_itself(query, named, judged, depth)
        elif len(named) > depth:
            named.popitem()
        run[query] = named
    return run


def without_itself(query: str, ranked: Mapping[str, float], judged: RetrievalData, depth: int) -> dict[str, float]:
    """Return what was found for a query but the query itself; at most `depth` documents."""
    text = normalise(judged.corpus.get(query, "")) if query in ranked else ""
    same = bool(text) and text.endswith(normalise(judged.queries[query])) and judged.qrels[query].get(query, 0) <= 0
    kept = [document for document in ranked if not (same and document == query)]
    return {document: ranked[document] for document in kept[:depth]}


def _answers(run: Run, judged: RetrievalData) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Return the first documents of each query, and the ranks of the relevant ones."""
    answers: dict[str, dict[str, dict[str, float | int | None]]] = {}
    for query, ranked in run.items():
        ranks: dict[str, float | int | None] = {
            document: None for document, grade in judged.qrels[query].items() if grade > 0
        }
        if not ranks:
            continue
        if any(document in ranked for document in ranks):
            order = list(ranked)
            ranks |= {document: order.index(document) + 1 for document in ranks if document in ranked}
        shown = {document: round(value, 4) for document, value in islice(ranked.items(), FOUND_SHOWN)}
        answers[query] = {"found": {**shown}, "ranks": ranks}
    return answers


@dataclass(frozen=True, slots=True)
class _Counts:
    """What a reader of scores should know: queries without a relevant document, documents of one text, queries that are
    documents, relevant documents with an unjudged twin; how many documents there are, where all of them are answers.
    """

    without: int
    twice: int
    standing: int
    repeated: int
    only_answers: int


def _count(judged: RetrievalData) -> _Counts:
    names_of: dict[str, list[str]] = {}
    for document, text in judged.corpus.items():
        names_of.setdefault(normalise(text), []).append(document)
    standing = 0
    repeated: set[str] = set()
    for query, text in judged.queries.items():
        grades = judged.qrels[query]
        # one under the query's own id is left out of what is found
        own = [document for document in names_of.get(normalise(text), ()) if document != query]
        standing += any(grades.get(document, 0) <= 0 for document in own)
        for document, grade in grades.items():
            if grade > 0 and document in judged.corpus:
                twins = names_of[normalise(judged.corpus[document])]
                if any(twin not in grades for twin in twins):
                    repeated.add(document)
    without = sum(not any(grade > 0 for grade in grades.values()) for grades in judged.qrels.values())
    twice = len(judged.corpus) - len(set(judged.corpus.values()))
    answers = {document for grades in judged.qrels.values() for document, grade in grades.items() if grade > 0}
    only_answers = len(judged.corpus) if answers.issuperset(judged.corpus) else 0
    return _Counts(without, twice, standing, len(repeated), only_answers)


def _tell(counts: _Counts, queries: int, name: str) -> None:
    if counts.without:
        log.warning("%s: %d queries have no relevant document and are left out, as in trec_eval", name, counts.without)
    if counts.twice:
        log.info("%s: %d documents repeat the text of another; such ties are ordered by id", name, counts.twice)
    if queries - counts.without < FEW_QUERIES:
        note_finding("few queries", name, queries - counts.without)
    if counts.only_answers:
        note_finding("only answers", name, counts.only_answers)
    if counts.standing:
        note_finding("query is a document", name, counts.standing, queries)
    if counts.repeated:
        note_finding("unjudged duplicate", name, counts.repeated)


FEW_QUERIES = 30
