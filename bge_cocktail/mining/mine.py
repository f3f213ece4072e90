"""Find hard negatives: candidates, reasons to leave them out, a choice among the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.encoding import Encoder, encode_queries_of
from bge_cocktail.errors import DataError, UsageError
from bge_cocktail.mining.audit import Audit, Seen
from bge_cocktail.mining.candidates import Candidates, Sought, candidate_sources, find_candidates
from bge_cocktail.mining.choosing import choices
from bge_cocktail.mining.filters import Block, Mask, filters_in_order
from bge_cocktail.mining.known import Known
from bge_cocktail.mining.teacher import Scored, Teacher, teacher_limit, with_scores
from bge_cocktail.options import Mining
from bge_cocktail.progress import progress
from bge_cocktail.records import Record, normalise
from bge_cocktail.search import Embedded, take

BLOCK = 512


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
    teacher: Teacher | None = None,
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
    check_mining(options)
    if teacher is None and (options.teacher_margin is not None or options.teacher_max is not None):
        raise UsageError("teacher_margin and teacher_max need a teacher (a cross-encoder)")
    records = list(records)
    by_key = _by_key([text for record in records for text in (*record.pos, *record.neg)] if corpus is None else corpus)
    documents = list(by_key.values())
    if not documents:
        raise DataError("there are no documents to mine from")
    queries = encode_queries_of(records, encoder)
    # positives that are no documents (or in another spelling) are embedded in the same call, each text once
    texts = list(dict.fromkeys([*documents, *(text for record in records for text in record.pos)]))
    with Embedded(encoder.encode_document, texts) as embeddings:
        sought = Sought(records, documents, queries, embeddings)
        candidates = find_candidates(sought, options, dict(also or {}))
        known = Known(records, by_key, texts, known_positives)
        work = _Work(sought, candidates, known, options, Scored(teacher) if teacher else None, audit)
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


def check_mining(options: Mining) -> None:
    """Look for what would stop mining, before anything is embedded.

    Raises:
        UsageError: A name is unknown, or no rank is left.
    """
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


class _Work:
    """Mining as it goes on, a block of records at a time."""

    def __init__(
        self,
        sought: Sought,
        candidates: Candidates,
        known: Known,
        options: Mining,
        scored: Scored | None,
        audit: int,
    ) -> None:
        self._sought, self._candidates, self._known = sought, candidates, known
        self._options, self._scored = options, scored
        self._filters = filters_in_order()
        self._choose = choices[options.choice]
        self._generator = np.random.default_rng(options.seed)
        count = len(sought.records)
        self._audited = set(np.linspace(0, count - 1, min(audit, count)).astype(int).tolist()) if audit else set()
        self.mined: list[Record] = []
        self.dropped: Counter[str] = Counter()
        self.audits: list[Audit] = []
        self.short = self.padded = 0

    def block(self, start: int, stop: int) -> None:
        """Mine for the records from start to stop."""
        rows = self._candidates.rows[start:stop]
        ranks = self._candidates.ranks[start:stop]
        there = rows >= 0
        similarities, to_positive, lowest = _similarities(
            self._sought, self._candidates, self._known.positives[start:stop], start, self._options
        )
        kept = [self._kept(record, row) for row, record in enumerate(self._sought.records[start:stop], start)]
        positive, query, taken = self._known.masks(rows, start, kept)
        block = Block(ranks, similarities, lowest, to_positive, positive, query, taken)
        reasons = np.full(rows.shape, -1, np.int16)
        for number, (name, drop) in enumerate(self._filters):
            mask: Mask | None = drop(block, self._options)
            if mask is not None:
                mask = mask & there & (reasons < 0)
                reasons[mask] = number
                self.dropped[name] += int(mask.sum())
        left = there & (reasons < 0)
        places = [np.flatnonzero(row) for row in left]
        if self._scored is not None:
            places = self._by_teacher(rows, places, start)
        for number, own in enumerate(kept):
            chosen = self._finish(number, start, rows[number], similarities[number], places[number], own)
            if start + number in self._audited:
                self._look(start + number, rows[number], similarities[number], reasons[number], places[number], chosen)

    def _kept(self, record: Record, row: int) -> tuple[str, ...]:
        """The negatives that a record brought along and keeps."""
        kept = record.neg if self._options.keep_negatives else ()
        self.dropped["replaced negative of the record"] += len(record.neg) - len(kept)
        if record.neg_scores:
            self.dropped["teacher score of a negative (scores no longer match)"] += len(record.neg_scores)
        if not kept:
            return ()
        excluded = self._known.excluded(row)
        kept = tuple(text for text in kept if normalise(text) not in excluded)
        self.dropped["negative of the record, but a positive elsewhere"] += len(record.neg) - len(kept)
        return kept

    def _by_teacher(
        self, rows: NDArray[np.int64], places: list[NDArray[np.int64]], start: int
    ) -> list[NDArray[np.int64]]:
        """The candidates that the teacher doesn't take for relevant; it sees the first ones only."""
        scored, options = self._scored, self._options
        if scored is None:
            return places
        scored.forget()
        records = self._sought.records[start : start + len(rows)]
        seen = [chosen[: options.teacher_depth] for chosen in places]
        pairs = [
            (record.query, text)
            for record, row, chosen in zip(records, rows, seen, strict=True)
            for text in (*record.pos, *(self._sought.documents[one] for one in row[chosen]))
        ]
        scored.learn(pairs)
        left = []
        for record, row, chosen, before in zip(records, rows, seen, places, strict=True):
            limit = teacher_limit(scored(record.query, record.pos), options)
            scores = np.array(scored(record.query, [self._sought.documents[one] for one in row[chosen]]))
            left.append(chosen[scores <= limit])
            self.dropped["above the teacher's limit"] += int((scores > limit).sum())
            self.dropped["not shown to the teacher"] += len(before) - len(chosen)
        return left

    def _finish(
        self,
        number: int,
        start: int,
        rows: NDArray[np.int64],
        similarities: NDArray[np.float32],
        places: NDArray[np.int64],
        own: tuple[str, ...],
    ) -> NDArray[np.int64]:
        """Choose, pad if asked, and add the record; gives the places chosen."""
        record, options = self._sought.records[start + number], self._options
        chosen = places[self._choose(similarities[places], options.negatives, options, self._generator)]
        self.dropped["not needed"] += len(places) - len(chosen)
        self.short += len(chosen) < options.negatives
        negatives = [*own, *(self._sought.documents[row] for row in rows[chosen])]
        extra = record.extra
        if options.pad and len(chosen) < options.negatives:
            more = self._known.draw(start + number, negatives, options.negatives - len(chosen), self._generator)
            negatives += more
            self.padded += len(more)
            extra = {**extra, "random_negatives": len(more)}
        mined = replace(record, neg=tuple(negatives), neg_scores=(), extra=extra)
        if self._scored is not None:
            self._scored.learn([(mined.query, text) for text in mined.neg])
            mined = with_scores(mined, self._scored)
        self.mined.append(mined)
        return chosen

    def _look(
        self,
        number: int,
        rows: NDArray[np.int64],
        similarities: NDArray[np.float32],
        reasons: NDArray[np.int16],
        places: NDArray[np.int64],
        chosen: NDArray[np.int64],
    ) -> None:
        """Keep the decisions about a record's candidates."""
        record = self._sought.records[number]
        seen = []
        for place in np.flatnonzero(rows >= 0).tolist():
            decision = self._filters[reasons[place]][0] if reasons[place] >= 0 else "not needed"
            if decision == "not needed" and place not in places:
                decision = "above the teacher's limit, or not shown to it"
            seen.append(
                Seen(
                    self._sought.documents[rows[place]],
                    int(self._candidates.ranks[number, place]),
                    self._candidates.names[int(self._candidates.sources[number, place])],
                    round(float(similarities[place]), 4),
                    "chosen" if place in chosen else decision,
                )
            )
        own = take(self._sought.embeddings, np.array(self._known.positives[number]))
        similar = (own @ self._sought.queries[number]).tolist()
        positives = tuple((text, round(one, 4)) for text, one in zip(record.pos, similar, strict=True))
        self.audits.append(Audit(record.query, positives, tuple(seen)))


def _similarities(
    sought: Sought, candidates: Candidates, positives: Sequence[Sequence[int]], start: int, options: Mining
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.float64]]:
    """Of candidates to the query, of candidates to the nearest positive (if asked for), of the lowest positive."""
    rows = candidates.rows[start : start + len(positives)]
    queries = sought.queries[start : start + len(rows)]
    owner = np.repeat(np.arange(len(rows)), [len(own) for own in positives])
    own = take(sought.embeddings, np.concatenate([np.asarray(one, np.int64) for one in positives]))
    lowest = np.full(len(rows), np.inf)
    np.minimum.at(lowest, owner, np.einsum("pd,pd->p", queries[owner], own).astype(np.float64))
    known = candidates.similarities
    if known is not None and options.duplicate_similarity is None:
        return known[start : start + len(rows)], None, lowest
    embedded = take(sought.embeddings, np.maximum(rows, 0))  # (records, width, dimensions)
    similarities = np.einsum("rwd,rd->rw", embedded, queries) if known is None else known[start : start + len(rows)]
    if options.duplicate_similarity is None:
        return similarities, None, lowest
    first = np.searchsorted(owner, np.arange(len(rows)))  # every record has a positive; most have no other
    to_positive = np.einsum("rwd,rd->rw", embedded, own[first])
    more = np.setdiff1d(np.arange(len(owner)), first)
    for begin in range(0, len(more), BLOCK):
        part = more[begin : begin + BLOCK]
        np.maximum.at(to_positive, owner[part], np.einsum("pwd,pd->pw", embedded[owner[part]], own[part]))
    return similarities, to_positive, lowest
