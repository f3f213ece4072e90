"""Candidates: the sources that they come from, what was decided about each, and how many are relevant after all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import UsageError
from bge_cocktail.core.registry import Registry
from bge_cocktail.data.beir import RetrievalData
from bge_cocktail.data.record import Record, normalise
from bge_cocktail.models.cache import Embeddings
from bge_cocktail.models.encoder import Encoder, encode_queries_of
from bge_cocktail.options import MineOptions
from bge_cocktail.search.approximate import search
from bge_cocktail.search.bm25 import top_by_words
from bge_cocktail.search.exact import Documents, Nearest, embedded, first_rows


@dataclass(frozen=True)
class MiningInput:
    """What candidates are sought for, and among what.

    Attributes:
        records: Whose queries are asked.
        documents: The texts to mine from.
        queries: The main encoder's embeddings, shape (records, dimensions).
        embeddings: Of the documents (and of further texts after them), by the main encoder.
    """

    records: Sequence[Record]
    documents: Sequence[str]
    queries: Embeddings
    embeddings: Documents


Source = Callable[[MiningInput, MineOptions], Nearest]
candidate_sources: Registry[Source] = Registry("candidate-sources")


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates of every record, from all sources.

    Attributes:
        rows: Of the documents, shape (records, width); -1 where there is none.
        ranks: The best rank that any source gave, from 1, shape (records, width).
        sources: Which source gave it that rank, as an index into `names`, shape (records, width).
        names: Of the sources.
        recalls: Of each source's search.
        similarities: By the main encoder, where it is the only source, shape (records, width).
    """

    rows: NDArray[np.int64]
    ranks: NDArray[np.int64]
    sources: NDArray[np.int8]
    names: tuple[str, ...]
    recalls: tuple[float, ...]
    similarities: NDArray[np.float32] | None = None


@candidate_sources("dense")
def dense(sought: MiningInput, options: MineOptions) -> Nearest:
    """Documents whose embeddings are nearest to the query's, by the main encoder (FAISS)."""
    # further texts (positives outside the corpus) lie after the documents
    documents = first_rows(sought.embeddings, len(sought.documents))
    return search(sought.queries, documents, options.depth, index=options.index, min_recall=options.min_recall)


@candidate_sources("bm25")
def bm25(sought: MiningInput, options: MineOptions) -> Nearest:
    """Documents that share words with the query (BM25 by bm25s; arXiv:2407.03618)."""
    # a document without any of the words is no candidate
    return top_by_words([record.query for record in sought.records], sought.documents, options.depth)


def by_encoder(encoder: Encoder) -> Source:
    """Return a source: the nearest documents by another encoder."""

    def source(sought: MiningInput, options: MineOptions) -> Nearest:
        queries = encode_queries_of(sought.records, encoder)
        with embedded(encoder.encode_document, sought.documents) as documents:
            return search(queries, documents, options.depth, index=options.index, min_recall=options.min_recall)

    return source


def find_candidates(sought: MiningInput, options: MineOptions, also: dict[str, Encoder]) -> Candidates:
    """Candidates of all chosen sources: by rank in turns, each document once.

    Args:
        sought: Records and documents.
        options: Which sources, to which depth.
        also: More encoders that give candidates, by name.

    Raises:
        UsageError: An encoder has the name of a source.
    """
    clash = sorted(set(also) & set(candidate_sources))
    if clash:
        raise UsageError(f"an encoder can't be named '{clash[0]}', which is a source of candidates")
    sources = {name: candidate_sources[name] for name in options.candidates}
    sources |= {name: by_encoder(encoder) for name, encoder in also.items()}
    candidates = [source(sought, options) for source in sources.values()]
    recalls = tuple(nearest.recall for nearest in candidates)
    if len(candidates) == 1:
        rows = candidates[0].rows
        ranks = np.broadcast_to(np.arange(1, rows.shape[1] + 1), rows.shape)
        similarities = candidates[0].similarities if "dense" in sources else None
        return Candidates(rows, ranks, np.zeros(rows.shape, np.int8), tuple(sources), recalls, similarities)
    width = max(nearest.rows.shape[1] for nearest in candidates)
    count = len(sought.records)
    rows = np.full((count, width, len(candidates)), -1, np.int64)
    for number, one in enumerate(candidates):
        rows[:, : one.rows.shape[1], number] = one.rows
    flat = rows.reshape(count, -1)
    # a later place of the same document is no candidate of its own
    order = np.argsort(flat, axis=1, kind="stable")
    ordered = np.take_along_axis(flat, order, 1)
    again = np.zeros(flat.shape, bool)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
    ranks = np.broadcast_to(np.arange(flat.shape[1]) // len(candidates) + 1, flat.shape)
    origin = np.broadcast_to((np.arange(flat.shape[1]) % len(candidates)).astype(np.int8), flat.shape)
    return Candidates(np.where(again, -1, flat), ranks, origin, tuple(sources), recalls)


@dataclass(frozen=True)
class CandidateDecision:
    """A candidate.

    Attributes:
        text: The document.
        rank: The best that any source gave it.
        source: Which source.
        similarity: To the query, by the main encoder.
        decision: ``chosen``, ``not needed``, or why it was left out.
    """

    text: str
    rank: int
    source: str
    similarity: float
    decision: str


@dataclass(frozen=True)
class Audit:
    """A query, its positives and its candidates.

    Attributes:
        query: The query.
        positives: Of the query in all records, each with its similarity.
        candidates: By rank.
    """

    query: str
    positives: tuple[tuple[str, float], ...]
    candidates: tuple[CandidateDecision, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class FalseNegatives:
    """Mined negatives that are judged relevant.

    Attributes:
        negatives: Negatives of queries that have judgements.
        relevant: Those of them that are judged relevant.
        examples: A few of them: query and document.
    """

    negatives: int
    relevant: int
    examples: tuple[tuple[str, str], ...]

    @property
    def rate(self) -> float:
        """Their share; 0 without any negative."""
        return self.relevant / self.negatives if self.negatives else 0.0


def false_negatives(records: Sequence[Record], judgements: Iterable[RetrievalData]) -> FalseNegatives:
    """Return how many negatives the judgements call relevant.

    Judgements are never complete: the rate is a lower bound.

    Args:
        records: With mined negatives.
        judgements: Of any splits; queries are known by their text.
    """
    relevant: dict[str, set[str]] = {}
    for judged in judgements:
        for query, grades in judged.qrels.items():
            texts = {
                normalise(judged.corpus[document])
                for document, grade in grades.items()
                if grade > 0 and document in judged.corpus
            }
            relevant.setdefault(normalise(judged.queries[query]), set()).update(texts)
    negatives, wrong = 0, []
    for record in records:
        known = relevant.get(normalise(record.query))
        if known is None:
            continue
        negatives += len(record.neg)
        wrong += [(record.query, text) for text in record.neg if normalise(text) in known]
    return FalseNegatives(negatives, len(wrong), tuple(wrong[:5]))
