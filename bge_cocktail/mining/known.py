"""What is known of every query: its positives in all records, and where they are among the documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.mining.filters import Mask
from bge_cocktail.records import Record, normalise, positives_by_query


class Known:
    """Positives by query, as texts and as rows.

    Args:
        records: Whose negatives are sought.
        documents: The texts to mine from, by their normalised form.
        texts: The documents, and the positives that are none of them, in the order they were embedded.
        known_positives: More records whose positives count.
    """

    def __init__(
        self,
        records: Sequence[Record],
        documents: Mapping[str, str],
        texts: Sequence[str],
        known_positives: Iterable[Record],
    ) -> None:
        self._documents = list(documents.values())
        self._row = {key: row for row, key in enumerate(documents)}
        self._queries = [normalise(record.query) for record in records]
        self._excluded = positives_by_query([*records, *known_positives])
        embedded = {text: row for row, text in enumerate(texts)}
        self.positives = [[embedded[text] for text in record.pos] for record in records]
        """For each record, the rows of its positives among the texts."""

    def excluded(self, record: int) -> set[str]:
        """The normalised positives of a record's query, in any record."""
        return self._excluded[self._queries[record]]

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
            positives += [base + row_of[text] for text in self.excluded(start + number) if text in row_of]
            query = row_of.get(self._queries[start + number])
            if query is not None:
                queries.append(base + query)
            taken += [base + row_of[key] for key in map(normalise, own) if key in row_of]
        places = np.where(rows >= 0, rows + count * np.arange(len(rows))[:, None], -1)
        return tuple(np.isin(places, np.array(one, np.int64)) for one in (positives, queries, taken))  # type: ignore[return-value]

    def draw(self, record: int, negatives: Sequence[str], count: int, generator: np.random.Generator) -> list[str]:
        """Random documents that are no positive of the record's query, not the query, and no negative yet."""
        without = {*self.excluded(record), self._queries[record], *map(normalise, negatives)}
        found: list[str] = []
        for _ in range(20 * count):
            if len(found) == count:
                break
            text = self._documents[int(generator.integers(len(self._documents)))]
            if normalise(text) not in without:
                without.add(normalise(text))
                found.append(text)
        return found
