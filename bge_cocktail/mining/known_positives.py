"""What is known of every query: its positives in all records, and where they are among the documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.data.record import Record, normalise
from bge_cocktail.mining.filters import Mask

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
        """The normalised positives of a record's query, in any record."""
        return self._keys[self.queries[record]]

    def positives_of(self, record: int) -> list[str]:
        """The positives of a record's query, in any record, as they are written; as `positives` has their rows."""
        return list(self._positives[self.queries[record]])

    def masks(self, rows: NDArray[np.int64], start: int, kept: Sequence[tuple[str, ...]]) -> tuple[Mask, Mask, Mask]:
        """Which candidates are known positives, the query itself, negatives already; each of the shape of rows.

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
        found: list[str] = []
        for _ in range(TRIES * count):
            if len(found) == count:
                return found
            self._take(int(generator.integers(len(self._documents))), seen, found)
        for row in generator.permutation(len(self._documents)).tolist():  # few are left: look at all
            if len(found) == count:
                break
            self._take(row, seen, found)
        return found

    def _take(self, row: int, seen: set[str], found: list[str]) -> None:
        key = normalise(self._documents[row])
        if key not in seen:
            seen.add(key)
            found.append(self._documents[row])
