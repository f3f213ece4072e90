"""What mining decided about each candidate, to look at; and how many negatives are judged relevant after all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bge_cocktail.data.beir import RetrievalData
from bge_cocktail.data.record import Record, normalise


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
    """How many negatives the judgements call relevant.

    Judgements are never complete: the rate is a lower bound.

    Args:
        records: With mined negatives.
        judgements: Of any splits; queries are known by their text.
    """
    relevant: dict[str, set[str]] = {}
    for judged in judgements:
        for query, grades in judged.qrels.items():
            texts = {normalise(judged.corpus[document]) for document, grade in grades.items() if grade > 0}
            relevant.setdefault(normalise(judged.queries[query]), set()).update(texts)
    negatives, wrong = 0, []
    for record in records:
        known = relevant.get(normalise(record.query))
        if known is None:
            continue
        negatives += len(record.neg)
        wrong += [(record.query, text) for text in record.neg if normalise(text) in known]
    return FalseNegatives(negatives, len(wrong), tuple(wrong[:5]))
