"""Which candidates are no hard negatives and why, by a teacher too; and which of the others are chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import CocktailError
from bge_cocktail.core.registry import Registry
from bge_cocktail.data.record import Record, normalise
from bge_cocktail.models.reranker import Reranker
from bge_cocktail.options import MineOptions

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Block:
    """The candidates of a block of records.

    Attributes:
        ranks: From 1, shape (records, width).
        similarities: Of query and candidate, by the main encoder, shape (records, width).
        margin_from: The similarity of each query to its positives: the lowest, mean or highest, shape (records,).
        to_positive: The similarity of each candidate to the most similar positive, shape (records, width); None
            unless asked for.
        positive: Candidates that are known positives of the query, shape (records, width).
        query: Candidates that are the query's own text, shape (records, width).
        taken: Candidates that are negatives of the record already, shape (records, width).
    """

    ranks: NDArray[np.int64]
    similarities: NDArray[np.float32]
    margin_from: NDArray[np.float64]
    to_positive: NDArray[np.float32] | None
    positive: Mask
    query: Mask
    taken: Mask


_OF_SEVERAL = {"lowest": np.minimum, "mean": np.add, "highest": np.maximum}


def margins_start(
    similarities: NDArray[np.float64], first: NDArray[np.int64], options: MineOptions
) -> NDArray[np.float64]:
    """Return for each query the similarity that its margins are measured from.

    Args:
        similarities: Of each query to its positives, all in one row.
        first: Where each query's begin in it, shape (queries,).
        options: Says which of several it is.
    """
    found: NDArray[np.float64] = _OF_SEVERAL[options.margin_from].reduceat(similarities, first)
    return found / np.diff(first, append=len(similarities)) if options.margin_from == "mean" else found


Filter = Callable[[Block, MineOptions], Mask | None]
"""A block in; what it excludes, shape (records, width), or None if the options don't ask for it."""
negative_filters: Registry[Filter] = Registry("negative-filters")


@negative_filters("known positive of the query", order=0)
def known_positive(block: Block, _options: MineOptions) -> Mask:
    """A positive of the query in any record that asks the same, however spaced or cased."""
    return block.positive


@negative_filters("the query itself", order=1)
def own_query(block: Block, _options: MineOptions) -> Mask:
    """The query's own text."""
    return block.query


@negative_filters("negative of the record already", order=2)
def already_negative(block: Block, _options: MineOptions) -> Mask:
    """A negative that the record brought along."""
    return block.taken


@negative_filters("within the skipped ranks", order=3)
def skipped(block: Block, options: MineOptions) -> Mask | None:
    """A rank of at most `skip` in any source."""
    return block.ranks <= options.skip if options.skip else None


@negative_filters("above the relative margin", order=4)
def relative_margin(block: Block, options: MineOptions) -> Mask | None:
    """More similar than (1 - margin) of the positive (NV-Retriever's TopK-PercPos, arXiv:2407.15831)."""
    if options.relative_margin is None:
        return None
    # a similarity below zero has no meaningful share: the margin then goes the other way, hence abs()
    limit = block.margin_from - options.relative_margin * np.abs(block.margin_from)
    return block.similarities > limit[:, None]


@negative_filters("above the absolute margin", order=5)
def absolute_margin(block: Block, options: MineOptions) -> Mask | None:
    """More similar than the positive minus the margin (NV-Retriever's TopK-MarginPos)."""
    if options.absolute_margin is None:
        return None
    return block.similarities > (block.margin_from - options.absolute_margin)[:, None]


@negative_filters("above the highest similarity", order=6)
def highest(block: Block, options: MineOptions) -> Mask | None:
    """More similar than max_similarity (NV-Retriever's TopK-Abs)."""
    return None if options.max_similarity is None else block.similarities > options.max_similarity


@negative_filters("below the lowest similarity", order=7)
def lowest(block: Block, options: MineOptions) -> Mask | None:
    """Less similar than min_similarity: too easy to teach anything."""
    return None if options.min_similarity is None else block.similarities < options.min_similarity


@negative_filters("near-duplicate of a positive", order=8)
def near_positive(block: Block, options: MineOptions) -> Mask | None:
    """As similar to a positive as duplicate_similarity, so most likely relevant too."""
    if options.duplicate_similarity is None or block.to_positive is None:
        return None
    return block.to_positive >= options.duplicate_similarity


def filters_in_order() -> list[tuple[str, Filter]]:
    """Return all filters: a candidate is counted under the first that excludes it; plugins' come last."""
    return sorted(negative_filters.items(), key=lambda item: (negative_filters.trait(item[0], "order", 99), item[0]))


Choice = Callable[[NDArray[np.float32], int, MineOptions, np.random.Generator], NDArray[np.int64]]
"""Similarities of the candidates left, by rank, and how many to choose; places of the chosen, in order of rank."""
choices: Registry[Choice] = Registry("choices")


@choices("top")
def top(
    similarities: NDArray[np.float32], count: int, _options: MineOptions, _generator: np.random.Generator
) -> NDArray[np.int64]:
    """The hardest."""
    return np.arange(min(count, len(similarities)))


@choices("random")
def random(
    similarities: NDArray[np.float32], count: int, _options: MineOptions, generator: np.random.Generator
) -> NDArray[np.int64]:
    """A draw, each as likely as any other."""
    return np.sort(generator.permutation(len(similarities))[:count])


@choices("stratified")
def stratified(
    similarities: NDArray[np.float32], count: int, _options: MineOptions, generator: np.random.Generator
) -> NDArray[np.int64]:
    """One from each of as many stretches of ranks, so that hard and easier ones are mixed."""
    if len(similarities) <= count:
        return np.arange(len(similarities))
    edges = np.linspace(0, len(similarities), count + 1).astype(np.int64)
    return edges[:-1] + generator.integers(0, np.diff(edges))


@choices("softmax")
def softmax(
    similarities: NDArray[np.float32], count: int, options: MineOptions, generator: np.random.Generator
) -> NDArray[np.int64]:
    """A draw without replacement, with odds exp(similarity / choice_temperature) (Gumbel-top-k, arXiv:1903.06059)."""
    noise = generator.gumbel(size=len(similarities))
    order = np.argsort(-(similarities / options.choice_temperature + noise), kind="stable")
    return np.sort(order[:count])


class TeacherScores:
    """A teacher that judges no pair twice.

    Args:
        teacher: Judges pairs.
    """

    def __init__(self, teacher: Reranker) -> None:
        self._teacher = teacher
        self._known: dict[tuple[str, str], float] = {}

    def __call__(self, query: str, documents: Sequence[str]) -> list[float]:
        """The score of each document for a query."""
        return [self._known[query, document] for document in documents]

    def learn(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Judge the pairs that weren't yet."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        if not new:
            return
        scores = np.asarray(self._teacher(new), np.float64)
        if not np.isfinite(scores).all():
            bad = new[int(np.flatnonzero(~np.isfinite(scores))[0])]
            raise CocktailError(
                f"the teacher gives NaN or infinite scores, first for: {bad[0][:60]!r} | {bad[1][:60]!r}"
            )
        self._known.update(zip(new, scores.tolist(), strict=True))

    def forget(self) -> None:
        """Keep no scores: the next records have other queries."""
        self._known.clear()


def teacher_limit(positives: Sequence[float], options: MineOptions) -> float:
    """Return the score above which a candidate is taken for relevant; infinite without a margin or limit."""
    limit = float("inf")
    if options.teacher_margin is not None:
        start = margins_start(np.asarray(positives, np.float64), np.zeros(1, np.int64), options)[0]
        limit = start - options.teacher_margin * abs(start)
    if options.teacher_max is not None:
        limit = min(limit, options.teacher_max)
    return limit


def with_scores(record: Record, scored: TeacherScores) -> Record:
    """Return the record with the teacher's scores of all its texts."""
    return replace(
        record,
        pos_scores=tuple(scored(record.query, record.pos)),
        neg_scores=tuple(scored(record.query, record.neg)),
    )


TRIES = 20


class KnownPositives:
    """Positives by query, as texts and as rows.

    Args:
        records: Whose negatives are sought.
        documents: The texts to mine from, by their normalised form.
        known_positives: More records whose positives count.
    """

    def __init__(
        self, records: Sequence[Record], documents: Mapping[str, str], known_positives: Iterable[Record]
    ) -> None:
        self._documents = list(documents.values())
        self._row = {key: row for row, key in enumerate(documents)}
        self.queries = [normalise(record.query) for record in records]
        """The normalised query of each record."""
        wanted = set(self.queries)
        positives: dict[str, dict[str, str]] = {}  # by query, each text as it is written, with its normalised form
        for query, record in zip(self.queries, records, strict=True):
            positives.setdefault(query, {}).update({text: normalise(text) for text in record.pos})
        for record in known_positives:
            if (query := normalise(record.query)) in wanted:
                positives[query].update({text: normalise(text) for text in record.pos})
        self._positives = positives
        self._keys = {query: frozenset(own.values()) for query, own in positives.items()}
        self.texts = list(dict.fromkeys([*self._documents, *(text for own in positives.values() for text in own)]))
        """What is embedded: the documents, then the positives that are none of them (or in another spelling)."""
        embedded = {text: row for row, text in enumerate(self.texts)}
        rows = {query: [embedded[text] for text in own] for query, own in positives.items()}
        self.positives = [rows[query] for query in self.queries]
        """For each record, the rows of all positives of its query among the texts."""

    def excluded(self, record: int) -> frozenset[str]:
        """Return the normalised positives of a record's query, in any record."""
        return self._keys[self.queries[record]]

    def positives_of(self, record: int) -> list[str]:
        """The positives of a record's query, in any record, as they are written; as `positives` has their rows."""
        return list(self._positives[self.queries[record]])

    def masks(self, rows: NDArray[np.int64], start: int, kept: Sequence[tuple[str, ...]]) -> tuple[Mask, Mask, Mask]:
        """Return which candidates are known positives, the query itself, negatives already; each of the shape of rows.

        Args:
            rows: Of the documents, shape (records, width), for the records from `start` on.
            start: The first record.
            kept: The negatives that each record keeps.
        """
        count = len(self._documents)
        row_of = self._row
        positives, queries, taken = [], [], []
        for number, own in enumerate(kept):
            base = number * count
            positives += [base + row_of[key] for key in self.excluded(start + number) if key in row_of]
            query = row_of.get(self.queries[start + number])
            if query is not None:
                queries.append(base + query)
            taken += [base + row_of[key] for key in map(normalise, own) if key in row_of]
        places = np.where(rows >= 0, rows + count * np.arange(len(rows))[:, None], -1)
        return (
            np.isin(places, np.array(positives, np.int64)),
            np.isin(places, np.array(queries, np.int64)),
            np.isin(places, np.array(taken, np.int64)),
        )

    def draw(self, record: int, without: Iterable[str], count: int, generator: np.random.Generator) -> list[str]:
        """Random documents that are no positive of the record's query, not the query, and none of those.

        Args:
            record: Which record.
            without: Normalised texts that are left out.
            count: How many; fewer come back when there are fewer.
            generator: Draws.
        """
        seen = {*self.excluded(record), self.queries[record], *without}
        negatives: list[str] = []
        for _ in range(TRIES * count):
            if len(negatives) == count:
                return negatives
            self._take(int(generator.integers(len(self._documents))), seen, negatives)
        for row in generator.permutation(len(self._documents)).tolist():  # few are left: look at all
            if len(negatives) == count:
                break
            self._take(row, seen, negatives)
        return negatives

    def _take(self, row: int, seen: set[str], negatives: list[str]) -> None:
        key = normalise(self._documents[row])
        if key not in seen:
            seen.add(key)
            negatives.append(self._documents[row])
