"""Hard negatives: documents that rank high for a query and are not relevant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.cache import Embeddings
from bge_cocktail.encoding import Encoder, encode_queries_of
from bge_cocktail.errors import DataError, UsageError
from bge_cocktail.options import Mining
from bge_cocktail.records import Record, normalise, positives_by_query
from bge_cocktail.search import top_k


@dataclass(frozen=True, slots=True)
class Mined:
    """What mining gives.

    Attributes:
        records: The records in the order they came, with negatives.
        dropped: How many candidates (or record parts) were left out, by reason.
        short: How many records have fewer mined negatives than asked.
    """

    records: list[Record]
    dropped: dict[str, int]
    short: int


def mine(
    records: Sequence[Record],
    encoder: Encoder,
    options: Mining | None = None,
    *,
    corpus: Iterable[str] | None = None,
    known_positives: Iterable[Record] = (),
) -> Mined:
    """Find hard negatives for each record.

    Candidates are the documents at ranks ``skip + 1`` to ``depth``. Dropped are the query's own text, every known
    positive of the query (in any record that asks the same, however spaced or cased), documents whose text came
    already, and what the margins exclude.

    Args:
        records: With positives; their own negatives are kept or replaced as the options say.
        encoder: Embeds queries and documents.
        options: How many, from which ranks, within which margins.
        corpus: Texts to mine from; without it, all positives and negatives of the records.
        known_positives: More records whose positives are no negatives of the same query.

    Raises:
        UsageError: `skip` leaves nothing below `depth`.
        DataError: The corpus is empty.
    """
    options = options or Mining()
    if options.skip >= options.depth:
        raise UsageError(f"skip={options.skip} leaves no rank up to depth={options.depth}")
    documents = distinct_texts(
        [text for record in records for text in (*record.pos, *record.neg)] if corpus is None else corpus
    )
    if not documents:
        raise DataError("there are no documents to mine from")
    keys = [normalise(text) for text in documents]
    positives = positives_by_query([*records, *known_positives])

    queries = encode_queries_of(records, encoder)
    # positives that are no documents (or in another spelling) are embedded in the same call, each text once
    texts = list(dict.fromkeys([*documents, *(text for record in records for text in record.pos)]))
    embeddings = encoder.encode_document(texts)
    similarities, rows = top_k(queries, embeddings[: len(documents)], options.depth)
    lowest = _lowest_positive(records, queries, dict(zip(texts, embeddings, strict=True)))

    generator = np.random.default_rng(options.seed)
    dropped: Counter[str] = Counter()
    mined: list[Record] = []
    short = 0
    for index, record in enumerate(records):
        excluded = positives[normalise(record.query)]
        kept = record.neg if options.keep_negatives else ()
        dropped["replaced negative of the record"] += len(record.neg) - len(kept)
        kept = tuple(text for text in kept if normalise(text) not in excluded)
        if options.keep_negatives:
            dropped["negative of the record, but a positive elsewhere"] += len(record.neg) - len(kept)
        if record.neg_scores:
            dropped["teacher score of a negative (scores no longer match)"] += len(record.neg_scores)
        seen = {normalise(text) for text in kept}
        candidates: list[int] = []
        for rank, (row, similarity) in enumerate(zip(rows[index], similarities[index], strict=True), start=1):
            reason = _reason_to_drop(
                keys[row], rank, float(similarity), float(lowest[index]), record, excluded, seen, options
            )
            if reason:
                dropped[reason] += 1
                continue
            seen.add(keys[row])
            candidates.append(int(row))
        chosen = _choose(candidates, options, generator)
        dropped["not needed"] += len(candidates) - len(chosen)
        short += len(chosen) < options.negatives
        negatives = (*kept, *(documents[row] for row in chosen))
        mined.append(replace(record, neg=negatives, neg_scores=()))
    return Mined(mined, {reason: count for reason, count in sorted(dropped.items()) if count}, short)


def distinct_texts(texts: Iterable[str]) -> list[str]:
    """Texts in order, each once as `normalise` sees them."""
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(normalise(text), text)
    return list(first.values())


def _lowest_positive(
    records: Sequence[Record], queries: Embeddings, embedding_of: Mapping[str, Embeddings]
) -> NDArray[np.float64]:
    """Similarity of each query to the least similar of its positives, shape (records,)."""
    return np.array(
        [
            min(float(query @ embedding_of[text]) for text in record.pos)
            for query, record in zip(queries, records, strict=True)
        ]
    )


def _reason_to_drop(
    key: str,
    rank: int,
    similarity: float,
    positive: float,
    record: Record,
    excluded: set[str],
    seen: set[str],
    options: Mining,
) -> str | None:
    """Why a candidate is no hard negative; None if it may be one."""
    if key in excluded:
        return "known positive of the query"
    if key == normalise(record.query):
        return "the query itself"
    if key in seen:
        return "negative of the record already"
    if rank <= options.skip:
        return "within the skipped ranks"
    # a similarity below zero has no meaningful share: the margin then goes the other way, hence abs()
    if options.relative_margin is not None and similarity > positive - options.relative_margin * abs(positive):
        return "above the relative margin"
    if options.absolute_margin is not None and similarity > positive - options.absolute_margin:
        return "above the absolute margin"
    if options.max_similarity is not None and similarity > options.max_similarity:
        return "above the highest similarity"
    return None


def _choose(candidates: list[int], options: Mining, generator: np.random.Generator) -> list[int]:
    if options.choice == "top" or len(candidates) <= options.negatives:
        return candidates[: options.negatives]
    drawn = generator.choice(len(candidates), options.negatives, replace=False)
    return [candidates[place] for place in sorted(drawn.tolist())]
