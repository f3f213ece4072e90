"""Find hard negatives: candidates, reasons to leave them out, a choice among the rest."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.core.outputs import new_folder, refuse_to_replace, write_json
from bge_cocktail.core.progress import progress
from bge_cocktail.core.runs import RUN_FILE, describe_run, hash_path
from bge_cocktail.data.beir import corpus_of, is_beir, read_corpus, read_judgements
from bge_cocktail.data.record import Record, normalise
from bge_cocktail.data.record_files import read_records, spread, write_records
from bge_cocktail.mining.candidates import (
    Audit,
    CandidateDecision,
    Candidates,
    FalseNegatives,
    MiningInput,
    candidate_sources,
    false_negatives,
    find_candidates,
)
from bge_cocktail.mining.filters import (
    Block,
    KnownPositives,
    Mask,
    TeacherScores,
    choices,
    filters_in_order,
    margins_start,
    teacher_limit,
    with_scores,
)
from bge_cocktail.models.encoder import CachedEncoder, Encoder, encode_queries_of
from bge_cocktail.models.folder import model_folder, sentence_transformers_folder
from bge_cocktail.models.reranker import Reranker, load_reranker
from bge_cocktail.options import EncodeOptions, MineOptions
from bge_cocktail.search.exact import embedded, take

AUDIT_FILE = "audit.json"
log = logging.getLogger(__name__)
BLOCK = 512
# what stands for a candidate that is left, and for none, where others have the number of their reason
LEFT, NONE = -1, -2


ABOVE_TEACHER, NOT_SHOWN = "above the teacher's limit", "not shown to the teacher"
RANDOM = "random_negatives"
"""In a record: which of its negatives are random documents."""


class Miner:
    """Mining as it goes on.

    Args:
        sought: Records, documents, embeddings.
        candidates: Of every record.
        known: Positives of every query.
        options: All options.
        scored: The teacher.
        audit: Keep the decisions about the candidates of so many records, evenly spread.
    """

    def __init__(
        self,
        sought: MiningInput,
        candidates: Candidates,
        known: KnownPositives,
        options: MineOptions,
        scored: TeacherScores | None,
        audit: int,
    ) -> None:
        self._sought, self._candidates, self._known = sought, candidates, known
        self._options, self._scored = options, scored
        self._filters = filters_in_order()
        self._names = [*(name for name, _ in self._filters), ABOVE_TEACHER, NOT_SHOWN]
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
        similarities, to_positive, margin_from = _similarities(
            self._sought, self._candidates, self._known.positives[start:stop], start, self._options
        )
        kept = [self._kept(record, row) for row, record in enumerate(self._sought.records[start:stop], start)]
        positive, query, taken = self._known.masks(rows, start, kept)
        block = Block(ranks, similarities, margin_from, to_positive, positive, query, taken)
        reasons = np.where(there, LEFT, NONE).astype(np.int16)
        for number, (_, drop) in enumerate(self._filters):
            mask: Mask | None = drop(block, self._options)
            if mask is not None:
                reasons[mask & (reasons == LEFT)] = number
        if self._scored is not None:
            self._by_teacher(rows, reasons, start)
        for number, name in enumerate(self._names):
            self.dropped[name] += int((reasons == number).sum())
        for number, own in enumerate(kept):
            self._finish(number, start, similarities[number], reasons[number], own)

    def _kept(self, record: Record, row: int) -> tuple[str, ...]:
        """Return the negatives that a record brought along and keeps, each once."""
        kept = record.neg if self._options.keep_negatives else ()
        self.dropped["replaced negative of the record"] += len(record.neg) - len(kept)
        if record.neg_scores:
            self.dropped["teacher score of a negative (scores no longer match)"] += len(record.neg_scores)
        positives, query = self._known.excluded(row), self._known.queries[row]
        unlike: dict[str, str] = {}
        for text in kept:
            key = normalise(text)
            if key in positives:
                self.dropped["negative of the record, but a positive elsewhere"] += 1
            elif key == query:
                self.dropped["negative of the record, but the query itself"] += 1
            elif key in unlike:
                self.dropped["negative of the record a second time"] += 1
            else:
                unlike[key] = text
        return tuple(unlike.values())

    def _by_teacher(self, rows: NDArray[np.int64], reasons: NDArray[np.int16], start: int) -> None:
        """Note the candidates that the teacher takes for relevant; it sees the first ones only."""
        scored, options = self._scored, self._options
        if scored is None:
            return
        scored.forget()
        if options.teacher_margin is None and options.teacher_max is None:
            return  # it only scores what is chosen
        records = self._sought.records[start : start + len(rows)]
        seen = []
        for number in range(len(rows)):
            left = np.flatnonzero(reasons[number] == LEFT)
            seen.append(left[: options.teacher_depth])
            reasons[number, left[options.teacher_depth :]] = self._names.index(NOT_SHOWN)
        documents = [
            [self._sought.documents[one] for one in row[chosen]] for row, chosen in zip(rows, seen, strict=True)
        ]
        positives = [self._known.positives_of(start + number) for number in range(len(rows))]
        scored.learn(
            [
                (record.query, text)
                for record, own, others in zip(records, positives, documents, strict=True)
                for text in (*record.pos, *own, *others)
            ]
        )
        for number, (record, own, others) in enumerate(zip(records, positives, documents, strict=True)):
            limit = teacher_limit(scored(record.query, own), options)
            above = np.array(scored(record.query, others)) > limit
            reasons[number, seen[number][above]] = self._names.index(ABOVE_TEACHER)

    def _finish(
        self,
        number: int,
        start: int,
        similarities: NDArray[np.float32],
        reasons: NDArray[np.int16],
        own: tuple[str, ...],
    ) -> None:
        """Choose, pad if asked, and add the record."""
        record, options, documents = self._sought.records[start + number], self._options, self._sought.documents
        rows = self._candidates.rows[start + number]
        places = np.flatnonzero(reasons == LEFT)
        chosen = places[self._choose(similarities[places], options.negatives, options, self._generator)]
        self.dropped["not needed"] += len(places) - len(chosen)
        self.short += len(chosen) < options.negatives
        negatives = [*own, *(documents[row] for row in rows[chosen])]
        extra = {name: value for name, value in record.extra.items() if name != RANDOM}
        if options.pad and len(chosen) < options.negatives:
            # what was left out for a reason doesn't come back by chance
            without = [*map(normalise, negatives), *(normalise(documents[row]) for row in rows[reasons >= 0])]
            drawn = self._known.draw(start + number, without, options.negatives - len(chosen), self._generator)
            negatives += drawn
            self.padded += len(drawn)
            extra[RANDOM] = drawn
        mined = replace(record, neg=tuple(negatives), neg_scores=(), extra=extra)
        if self._scored is not None:
            self._scored.learn([(mined.query, text) for text in (*mined.pos, *mined.neg)])
            mined = with_scores(mined, self._scored)
        self.mined.append(mined)
        if start + number in self._audited:
            self._look(start + number, similarities, reasons, chosen)

    def _look(
        self,
        number: int,
        similarities: NDArray[np.float32],
        reasons: NDArray[np.int16],
        chosen: NDArray[np.int64],
    ) -> None:
        """Keep the decisions about a record's candidates."""
        record, candidates = self._sought.records[number], self._candidates
        taken = set(chosen.tolist())
        seen = tuple(
            CandidateDecision(
                self._sought.documents[candidates.rows[number, place]],
                int(candidates.ranks[number, place]),
                candidates.names[int(candidates.sources[number, place])],
                round(float(similarities[place]), 4),
                "chosen" if place in taken else self._names[reasons[place]] if reasons[place] >= 0 else "not needed",
            )
            for place in np.flatnonzero(reasons != NONE).tolist()
        )
        own = take(self._sought.embeddings, np.array(self._known.positives[number]))
        similar = (own @ self._sought.queries[number]).tolist()
        texts = self._known.positives_of(number)
        positives = tuple((text, round(one, 4)) for text, one in zip(texts, similar, strict=True))
        self.audits.append(Audit(record.query, positives, seen))


def _similarities(
    sought: MiningInput, candidates: Candidates, positives: Sequence[Sequence[int]], start: int, options: MineOptions
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.float64]]:
    """Of candidates to the query and (if asked for) to the nearest positive; and what margins are measured from."""
    rows = candidates.rows[start : start + len(positives)]
    queries = sought.queries[start : start + len(rows)]
    owner = np.repeat(np.arange(len(rows)), [len(own) for own in positives])
    own = take(sought.embeddings, np.concatenate([np.asarray(positive, np.int64) for positive in positives]))
    to_query = np.einsum("pd,pd->p", queries[owner], own).astype(np.float64)
    first = np.searchsorted(owner, np.arange(len(rows)))  # every record has a positive; most have no other
    margin_from = margins_start(to_query, first, options)
    known = candidates.similarities
    if known is not None and options.duplicate_similarity is None:
        return known[start : start + len(rows)], None, margin_from
    embedded = take(sought.embeddings, np.maximum(rows, 0))  # (records, width, dimensions)
    similarities = np.einsum("rwd,rd->rw", embedded, queries) if known is None else known[start : start + len(rows)]
    if options.duplicate_similarity is None:
        return similarities, None, margin_from
    to_positive = np.einsum("rwd,rd->rw", embedded, own[first])
    more = np.setdiff1d(np.arange(len(owner)), first)
    for begin in range(0, len(more), BLOCK):
        part = more[begin : begin + BLOCK]
        np.maximum.at(to_positive, owner[part], np.einsum("pwd,pd->pw", embedded[owner[part]], own[part]))
    return similarities, to_positive, margin_from


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
    options: MineOptions | None = None,
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
    options = options or MineOptions()
    check_mining(options, teacher is not None)
    if missing := sorted(set(options.also) - set(also or {})):
        raise UsageError(f"the options name the encoder '{missing[0]}', which isn't given")
    records = list(spread(records, options.limit))
    by_key = _by_key([text for record in records for text in (*record.pos, *record.neg)] if corpus is None else corpus)
    documents = list(by_key.values())
    if not documents:
        raise DataError("there are no documents to mine from")
    known = KnownPositives(records, by_key, known_positives)
    queries = encode_queries_of(records, encoder)
    with embedded(encoder.encode_document, known.texts) as embeddings:
        sought = MiningInput(records, documents, queries, embeddings)
        candidates = find_candidates(sought, options, dict(also or {}))
        work = Miner(sought, candidates, known, options, TeacherScores(teacher) if teacher else None, audit)
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


@dataclass(frozen=True)
class MiningRun:
    """What `run_mine` gave.

    Attributes:
        folder: With records.jsonl, run.json, and audit.json where decisions were kept.
        mined: Records with negatives.
        summary: What run.json says of them: counts by name, and what was ``dropped``, by reason.
        wrong: How many negatives are judged relevant; None without judgements.
    """

    folder: Path
    mined: Mined
    summary: Mapping[str, Any]
    wrong: FalseNegatives | None


def run_mine(
    data: Path,
    model: str | Path,
    output: Path,
    options: MineOptions | None = None,
    encoding: EncodeOptions | None = None,
    *,
    corpus: Path | None = None,
    split: str = "train",
    judgements: Sequence[Path] = (),
    audit: int = 0,
    overwrite: bool = False,
) -> MiningRun:
    """Find hard negatives for the records of a file or folder, and keep them in a folder.

    Args:
        data: A file of records, a folder that `prepare` wrote, or a BEIR folder; the corpus of a folder is then mined.
        model: Folder or hub name of the encoder that ranks the documents.
        output: The folder to write.
        options: See `mine`; further encoders and the teacher are loaded by name.
        encoding: How texts are embedded.
        corpus: Documents to mine from: JSON Lines with ``text``, or a BEIR folder.
        split: Which split of a folder.
        judgements: BEIR folders whose judgements tell false negatives.
        audit: Keep the decisions about the candidates of so many records.
        overwrite: Replace an older output of this tool.

    Raises:
        UsageError: Options that can't go together, or an output that exists.
        DataError: Data or a model that can't be read.
    """
    options, encoding = options or MineOptions(), encoding or EncodeOptions()
    teachers = [options.teacher] if options.teacher else []
    sources = [data, model, *([corpus] if corpus else []), *options.also, *teachers, *judgements]
    refuse_to_replace(output, overwrite, sources)
    for name in options.also:
        sentence_transformers_folder(name)
    judged = judgements or ((data,) if audit and is_beir(data) else ())
    relevant = [qrels for path in judged for qrels in read_judgements(path)]
    started = time.monotonic()
    records = read_records(data, split=split)
    source = corpus or corpus_of(data)
    encoder = CachedEncoder(model, encoding)
    also = {name: CachedEncoder(name, encoding) for name in options.also}
    mined = mine(
        records,
        encoder,
        options,
        corpus=read_corpus(source) if source else None,
        also=also,
        teacher=load_reranker(options.teacher, device=encoding.device) if options.teacher else None,
        audit=audit,
    )
    if not any(record.neg for record in mined.records):
        log.warning("no record got a negative; what was dropped, and the limits of ranks and similarity, tell why")
    wrong = false_negatives(mined.records, relevant) if judged else None
    embedded_texts = encoder.embedded + sum(each.embedded for each in also.values())
    summary = _summary(mined, options, wrong, embedded_texts)
    inputs = {str(model): encoder.hash, str(data): hash_path(data), **{name: each.hash for name, each in also.items()}}
    inputs |= {str(path): hash_path(path) for path in judgements}
    inputs |= {name: hash_path(model_folder(name)) for name in teachers}
    inputs |= {str(corpus): hash_path(corpus)} if corpus else {}
    used: dict[str, Any] = {"mine": options.model_dump(mode="json"), "encode": encoding.model_dump(mode="json")}
    used |= {"split": split, "audit": audit}
    with new_folder(output, overwrite=overwrite) as new:
        write_records(mined.records, new / "records.jsonl")
        if audit:
            write_json(new / AUDIT_FILE, [decisions.to_json() for decisions in mined.audits])
        seconds = time.monotonic() - started
        write_json(new / RUN_FILE, describe_run("mine", options=used, inputs=inputs, seconds=seconds, **summary))
    return MiningRun(output, mined, summary, wrong)


def _summary(mined: Mined, options: MineOptions, wrong: FalseNegatives | None, embedded_texts: int) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "records": len(mined.records),
        "negatives": sum(len(record.neg) for record in mined.records),
        "records_short_of_negatives": mined.short,
    }
    if options.pad:
        summary["random_negatives"] = mined.padded
    if options.index != "exact":
        summary |= {f"recall_of_{name}": round(recall, 4) for name, recall in mined.recalls.items()}
    if wrong is not None:
        summary |= {"judged_negatives": wrong.negatives, "judged_relevant": wrong.relevant}
    return {**summary, "texts_embedded": embedded_texts, "dropped": mined.dropped}


def check_mining(options: MineOptions, teacher: bool) -> None:
    """Refuse options that would stop mining, before anything is embedded.

    Args:
        options: Which documents become hard negatives.
        teacher: Whether a teacher (a cross-encoder) is given.

    Raises:
        UsageError: A name is unknown, no source or no rank is left, a limit has no teacher or looks at too few
            documents, or an index is set and nothing is embedded.
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
            registry[name]  # an unknown name is an error that lists the known
    if not options.candidates and not options.also:
        raise UsageError("candidates is empty; name a source: dense, bm25")


def _by_key(texts: Iterable[str]) -> dict[str, str]:
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(normalise(text), text)
    return first
