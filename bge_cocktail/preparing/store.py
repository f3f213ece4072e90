"""The first pass over the data: read, clean, drop repeats, count, keep what is left in one file."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import xxhash

from bge_cocktail.core.errors import DataError
from bge_cocktail.data.examples import Example, LabelledText, RecordExample, example_from_json
from bge_cocktail.data.readers import load_json
from bge_cocktail.data.record import exact_key, text_key
from bge_cocktail.data.record_files import json_line
from bge_cocktail.models.encoder import Encoder
from bge_cocktail.options import PrepareOptions
from bge_cocktail.preparing.clean import SAMPLES, Cleaner
from bge_cocktail.preparing.duplicates import Groups, find_duplicates

LABELS_SHOWN = 200


class PrepareReport(TypedDict, total=False):
    """What was read, changed, left out and written; counts go by their reason."""

    read: int
    rejected: dict[str, int]
    cleaned_texts: dict[str, int]
    dropped: dict[str, int]
    texts_that_went: dict[str, int]
    negatives_that_went: dict[str, int]
    samples: dict[str, list[Any]]
    groups: dict[str, int]
    leaks: dict[str, Any]
    augmented: dict[str, int]
    corpus: dict[str, int]
    corpus_changes: list[tuple[str, str]]
    kept_splits: list[str]
    splits: dict[str, dict[str, Any]]


class SplitStatistics:
    """Counts the examples of one split as they go by.

    Args:
        count_tokens: Tokens of a text; without it, only characters are counted.
        limit: The longest text that the model reads, in tokens.
    """

    def __init__(self, count_tokens: Callable[[str], int] | None = None, limit: int | None = None) -> None:
        self._count_tokens, self._limit = count_tokens, limit
        self._chars: dict[str, array[int]] = {}
        self._tokens: dict[str, array[int]] = {}
        self._labels: Counter[str] = Counter()
        self.examples = 0
        self._without_negatives = 0
        self._augmented = 0
        self._weights = 0.0

    def add(self, example: Example) -> None:
        """Count an example."""
        self.examples += 1
        extra = example.extra
        self._augmented += "augmented" in extra
        if label := example.label_text() or (extra and str(extra.get("label") or "")):
            self._labels[label] += 1
        if isinstance(example, RecordExample):
            record = example.record
            self._without_negatives += not record.neg
            self._weights += record.weight
            self._measure("query", record.query)
            for text in record.pos:
                self._measure("positive", text)
            for text in record.neg:
                self._measure("negative", text)
        else:
            for text in example.own_texts():
                self._measure("text" if isinstance(example, LabelledText) else "sentence", text)

    def summary(self) -> dict[str, Any]:
        """Return all that was counted, for JSON."""
        counted: dict[str, Any] = {"examples": self.examples}
        for role, lengths in self._chars.items():
            counted[f"{role}_chars"] = _spread(lengths)
        for role, lengths in self._tokens.items():
            counted[f"{role}_tokens"] = _spread(lengths)
            if self._limit:
                cut = float(np.mean(np.frombuffer(lengths, np.uint32) > self._limit))
                counted[f"{role}_cut"] = {"limit": self._limit, "share": round(cut, 4)}
        if "query" in self._chars:
            counted["without_negatives"] = self._without_negatives
            counted["mean_weight"] = round(self._weights / max(1, self.examples), 4)
        if self._augmented:
            counted["augmented"] = self._augmented
        if self._labels:
            counted["labels"] = dict(self._labels.most_common(LABELS_SHOWN))
            counted["distinct_labels"] = len(self._labels)
        return counted

    def _measure(self, role: str, text: str) -> None:
        self._chars.setdefault(role, array("I")).append(len(text))
        if self._count_tokens is not None:
            self._tokens.setdefault(role, array("I")).append(self._count_tokens(text))


def _spread(lengths: array[int]) -> dict[str, float]:
    values = np.frombuffer(lengths, np.uint32)
    middle, high = np.percentile(values, [50, 95])
    return {
        "texts": len(values),
        "mean": round(float(values.mean()), 1),
        "median": float(middle),
        "p95": float(high),
        "most": int(values.max()),
    }


@dataclass
class Store:
    """Cleaned examples in a file, and what is remembered of each.

    Attributes:
        path: JSON Lines, one example a line.
        keys: The keys of each example's own texts (the query first).
        labels: The label or task of each.
        columns: The values of each that keep examples together.
        fixed: The split that each came from, if splits are kept; else -1.
        only_records: Whether all of them are records.
        read: How many examples were read.
        dropped: How many were dropped, by reason.
        samples: A few of those, by reason.
    """

    path: Path
    keys: list[tuple[bytes, ...]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    columns: list[tuple[str, ...]] = field(default_factory=list)
    fixed: array[int] = field(default_factory=lambda: array("b"))
    only_records: bool = True
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, example: Example) -> None:
        """Count an example that goes."""
        self.dropped[reason] += 1
        samples = self.samples.setdefault(reason, [])
        if len(samples) < SAMPLES:
            samples.append(" | ".join(example.own_texts())[:200])

    def lines(self) -> Iterator[bytes]:
        """Yield the line of each example."""
        with self.path.open("rb") as file:
            yield from file

    def examples(self) -> Iterator[Example]:
        """Yield the examples."""
        for line in self.lines():
            yield parse(line)


def remembers(options: PrepareOptions) -> bool:
    """Return whether anything asked for needs to know which texts went by; memory grows with their number then."""
    return bool(options.duplicates or options.group_by or options.keep_splits or any(options.ratio[1:]))


def parse(line: bytes) -> Example:
    """Return the example of a staged line."""
    return example_from_json(load_json(line, "staged"), "staged")


def store_examples(
    sources: Iterable[tuple[int, Iterable[Example]]],
    path: Path,
    cleaner: Cleaner,
    options: PrepareOptions,
    census: SplitStatistics | None = None,
) -> Store:
    """Read all sources once.

    Args:
        sources: For each, the split that it stays in (-1: none yet) and its examples.
        path: The file to write.
        cleaner: Cleans texts, or sends them away.
        options: Whether exact repeats go, and which columns keep examples together.
        census: Counts the examples that stay, where nothing will be done to them later.

    Raises:
        DataError: A column to group by is missing, or nothing is left.
    """
    staged = Store(path)
    labels_of: dict[tuple[int, bytes], str] = {}
    remember = remembers(options)
    limited = options.max_chars or options.max_tokens or options.min_tokens or options.min_chars > 1
    cleans = bool(options.clean or options.languages or limited)
    with path.open("wb") as file:
        for split, examples in sources:
            for example in examples:
                staged.read += 1
                changed = example.changed(cleaner) if cleans else example
                if changed is None:
                    staged.drop(cleaner.last_reason, example)
                    continue
                if remember:
                    keys = tuple(text_key(text) for text in changed.own_texts())
                    if "exact" in options.duplicates and _is_repeat(staged, changed, keys, split, labels_of):
                        continue
                    staged.keys.append(keys)
                    staged.labels.append(_stratum(changed))
                    staged.columns.append(_values(changed, options.group_by))
                staged.fixed.append(split)
                staged.only_records &= isinstance(changed, RecordExample)
                if census is not None:
                    census.add(changed)
                file.write(json_line(changed.to_json()))
    if not staged.fixed:
        gone = "; ".join(f"{count} {reason}" for reason, count in staged.dropped.most_common())
        raise DataError(f"nothing is left of {staged.read} examples ({gone})")
    return staged


def alike(staged: Store, options: PrepareOptions, encoder: Encoder | None) -> list[tuple[bytes, bytes]]:
    """Keys of texts that the slower finders (near, semantic) take for the same."""
    slower = [name for name in options.duplicates if name != "exact"]
    if not slower:
        return []
    texts = [text for example in staged.examples() for text in example.own_texts()]
    keys = [key for own in staged.keys for key in own]
    return [(keys[one], keys[other]) for _, (one, other, _) in find_duplicates(texts, slower, options, encoder)]


def drop_near_repeats(staged: Store, pairs: Sequence[tuple[bytes, bytes]]) -> None:
    """Take out examples that are near an earlier one: the query (or the text, with the same label) and all positives.

    Near is what hangs together by the pairs.
    """
    classes = Classes(pairs)
    # for each query, the examples that have each positive: (split, label, class of the query) -> class -> numbers
    seen: dict[tuple[int, str, bytes], dict[bytes, set[int]]] = {}
    kept: list[int] = []
    working = staged.path.with_suffix(".kept")
    with working.open("wb") as file:
        for number, line in enumerate(staged.lines()):
            query, *positives = (classes.of(key) for key in staged.keys[number])
            before = seen.setdefault((staged.fixed[number], staged.labels[number], query), {})
            with_all = [before.get(positive, set()) for positive in positives] or [before.get(b"", set())]
            # the same query and positives with other negatives (triplets) are meant as they are
            if any(staged.keys[other] != staged.keys[number] for other in set.intersection(*with_all)):
                staged.drop("near-duplicate of another", parse(line))
                continue
            for one in positives or [b""]:
                before.setdefault(one, set()).add(number)
            kept.append(number)
            file.write(line)
    working.replace(staged.path)
    staged.fixed = array("b", (staged.fixed[number] for number in kept))
    for name in ("keys", "labels", "columns"):
        values = getattr(staged, name)
        setattr(staged, name, [values[number] for number in kept])


def group(staged: Store, pairs: Iterable[tuple[bytes, bytes]]) -> Groups:
    """Return which examples have to stay in one split: those that share a text, a near text, or a column's value."""
    groups = Groups(len(staged.keys))
    owner: dict[bytes | tuple[int, str], int] = {}
    for number, keys in enumerate(staged.keys):
        for key in keys:
            groups.join(owner.setdefault(key, number), number)
        for column in enumerate(staged.columns[number]):
            groups.join(owner.setdefault(column, number), number)
    for one, other in pairs:
        if one in owner and other in owner:
            groups.join(owner[one], owner[other])
    return groups


class Classes:
    """Which keys of texts hang together.

    Args:
        pairs: Keys that are alike.
    """

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self._row: dict[bytes, int] = {}
        known = [(self._number(one), self._number(other)) for one, other in pairs]
        self._groups = Groups(len(self._row))
        for one, other in known:
            self._groups.join(one, other)
        self._keys = list(self._row)

    def of(self, key: bytes) -> bytes:
        """Return the key that stands for all that hang together with this one."""
        row = self._row.get(key)
        return key if row is None else self._keys[self._groups.find(row)]

    def _number(self, key: bytes) -> int:
        return self._row.setdefault(key, len(self._row))


def _is_repeat(
    staged: Store, example: Example, keys: tuple[bytes, ...], split: int, labels_of: dict[tuple[int, bytes], str]
) -> bool:
    # positives in any order are the same positives; other negatives or another prompt make another record, another
    # label or score doesn't make another text; documents are the same to the letter (`tree -d` is not `tree -D`)
    documents = sorted(exact_key(text) for text in example.own_texts()[1:])
    what, label = b"".join((keys[0], *documents)), ""
    if isinstance(example, RecordExample):
        record = example.record
        what += b"".join(sorted(exact_key(text) for text in record.neg)) + (record.prompt or "").encode()
    else:
        what += getattr(example, "task", "").encode()
        label = example.label_text() or str(getattr(example, "score", ""))
    identity = (split, xxhash.xxh3_128_digest(what))
    if identity not in labels_of:
        labels_of[identity] = label
        return False
    same = labels_of[identity] == label
    staged.drop("exact duplicate" if same else "the same text with another label or score", example)
    return True


def _stratum(example: Example) -> str:
    """Return the task and the label, as far as there are any."""
    return " ".join(filter(None, (getattr(example, "task", ""), example.label_text())))


def _values(example: Example, columns: list[str]) -> tuple[str, ...]:
    if not columns:
        return ()
    values = {**example.extra, "task": getattr(example, "task", None) or None}
    if isinstance(example, RecordExample):
        values |= {"id": example.record.id, "task": example.record.task}
    missing = [name for name in columns if values.get(name) is None]
    if missing:
        raise DataError(
            f"no '{missing[0]}' to group by in {' | '.join(example.own_texts())[:60]!r}; it has "
            f"{', '.join(name for name, value in values.items() if value is not None) or 'no other columns'}"
        )
    return tuple(str(values[name]) for name in columns)
