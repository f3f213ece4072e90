"""Find hard negatives: candidates, reasons to leave them out, a choice among the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bge_cocktail.encoding import Encoder, encode_queries_of
from bge_cocktail.errors import DataError, UsageError
from bge_cocktail.mining.audit import Audit
from bge_cocktail.mining.candidates import Sought, candidate_sources, find_candidates
from bge_cocktail.mining.choosing import choices
from bge_cocktail.mining.known import Known
from bge_cocktail.mining.teacher import Scored
from bge_cocktail.mining.work import BLOCK, Work
from bge_cocktail.options import Mining
from bge_cocktail.progress import progress
from bge_cocktail.records import Record, normalise
from bge_cocktail.reranker import Reranker
from bge_cocktail.search import embedded


@dataclass(frozen=True, slots=True)
class Mined:
    """What mining gives.

    Attributes:
        records: The records in the order they came, with negatives.
        dropped: How many candidates (or record parts) were left out, by reason.
        short: How many records have fewer mined negatives than asked.
        audits: The decisions about the candidates of some records, if asked for.
        recalls: For each source of candidates, the share of the truly nearest that it found.
        padded: How many negatives are random documents, because there were too few.
    """

    records: list[Record]
    dropped: dict[str, int]
    short: int
    audits: tuple[Audit, ...] = ()
    recalls: Mapping[str, float] = field(default_factory=dict)
    padded: int = 0


def mine(
    records: Sequence[Record],
    encoder: Encoder,
    options: Mining | None = None,
    *,
    corpus: Iterable[str] | None = None,
    known_positives: Iterable[Record] = (),
    also: Mapping[str, Encoder] | None = None,
    teacher: Reranker | None = None,
    audit: int = 0,
) -> Mined:
    """Find hard negatives for each record.

    Candidates are the documents at ranks ``skip + 1`` to ``depth`` of the chosen sources. Dropped are the query's own
    text, every known positive of the query (in any record that asks the same, however spaced or cased), documents
    whose text came already, near-duplicates of positives, and what the margins exclude.

    Args:
        records: With positives; their own negatives are kept or replaced as the options say.
        encoder: Embeds queries and documents; all margins are in its similarities.
        options: How many, from which sources and ranks, within which margins.
        corpus: Texts to mine from; without it, all positives and negatives of the records.
        known_positives: More records whose positives are no negatives of the same query.
        also: More encoders whose candidates are taken too, by name.
        teacher: A cross-encoder that judges the candidates and whose scores go into the records.
        audit: Keep the decisions about the candidates of so many records, evenly spread.

    Raises:
        UsageError: `skip` leaves nothing below `depth`, or a limit needs a teacher that isn't given.
        DataError: The corpus is empty.
    """
    options = options or Mining()
    check_mining(options, teacher is not None)
    if missing := sorted(set(options.also) - set(also or {})):
        raise UsageError(f"the options name the encoder '{missing[0]}', which isn't given")
    records = list(records)
    by_key = _by_key([text for record in records for text in (*record.pos, *record.neg)] if corpus is None else corpus)
    documents = list(by_key.values())
    if not documents:
        raise DataError("there are no documents to mine from")
    known = Known(records, by_key, known_positives)
    queries = encode_queries_of(records, encoder)
    with embedded(encoder.encode_document, known.texts) as embeddings:
        sought = Sought(records, documents, queries, embeddings)
        candidates = find_candidates(sought, options, dict(also or {}))
        work = Work(sought, candidates, known, options, Scored(teacher) if teacher else None, audit)
        with progress("choosing negatives", len(records)) as advance:
            for start in range(0, len(records), BLOCK):
                work.block(start, min(start + BLOCK, len(records)))
                advance(min(BLOCK, len(records) - start))
    return Mined(
        work.mined,
        {reason: count for reason, count in sorted(work.dropped.items()) if count},
        work.short,
        tuple(work.audits),
        dict(zip(candidates.names, candidates.recalls, strict=True)),
        work.padded,
    )


def check_mining(options: Mining, teacher: bool) -> None:
    """Look for what would stop mining, before anything is embedded.

    Args:
        options: All options.
        teacher: Whether there is one.

    Raises:
        UsageError: A name is unknown, no rank is left, or a limit needs a teacher.
    """
    limited = options.teacher_margin is not None or options.teacher_max is not None
    if limited and not teacher:
        raise UsageError("teacher_margin and teacher_max need a teacher (a cross-encoder)")
    if limited and options.teacher_depth < options.negatives:
        raise UsageError(f"teacher_depth={options.teacher_depth} is less than negatives={options.negatives}")
    if options.index != "exact" and "dense" not in options.candidates and not options.also:
        raise UsageError(f"index={options.index} is for embeddings, but candidates is {', '.join(options.candidates)}")
    if options.skip >= options.depth:
        raise UsageError(f"skip={options.skip} leaves no rank up to depth={options.depth}")
    for registry, names in ((candidate_sources, options.candidates), (choices, [options.choice])):
        for name in names:
            registry[name]
    if not options.candidates and not options.also:
        raise UsageError("candidates is empty; name a source: dense, bm25")


def distinct_texts(texts: Iterable[str]) -> list[str]:
    """Texts in order, each once as `normalise` sees them."""
    return list(_by_key(texts).values())


def _by_key(texts: Iterable[str]) -> dict[str, str]:
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(normalise(text), text)
    return first
