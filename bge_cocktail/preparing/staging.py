"""The first pass over the data: read, clean, drop repeats, keep what is left in one file."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from bge_cocktail.encoding import Encoder
from bge_cocktail.errors import DataError
from bge_cocktail.options import Preparing
from bge_cocktail.preparing.census import Census
from bge_cocktail.preparing.cleaning import SAMPLES, Cleaner
from bge_cocktail.preparing.duplicates import Groups, find_duplicates, text_key
from bge_cocktail.records.examples import Example, RecordExample, example_from_json
from bge_cocktail.records.files import json_line
from bge_cocktail.records.lines import load_json


@dataclass
class Staged:
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
        """The line of each example."""
        with self.path.open("rb") as file:
            yield from file

    def examples(self) -> Iterator[Example]:
        """The examples."""
        for line in self.lines():
            yield parse(line)


def remembers(options: Preparing) -> bool:
    """Whether anything asked for needs to know which texts went by; memory grows with their number then."""
    return bool(options.duplicates or options.group_by or options.keep_splits or any(options.ratio[1:]))


def parse(line: bytes) -> Example:
    """The example of a staged line."""
    return example_from_json(load_json(line, "staged"), "staged")


def stage(
    sources: Iterable[tuple[int, Iterable[Example]]],
    path: Path,
    cleaner: Cleaner,
    options: Preparing,
    census: Census | None = None,
) -> Staged:
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
    staged = Staged(path)
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


def alike(staged: Staged, options: Preparing, encoder: Encoder | None) -> list[tuple[bytes, bytes]]:
    """Keys of texts that the slower finders (near, semantic) take for the same."""
    slower = [name for name in options.duplicates if name != "exact"]
    if not slower:
        return []
    texts = [text for example in staged.examples() for text in example.own_texts()]
    keys = [key for own in staged.keys for key in own]
    return [(keys[one], keys[other]) for _, (one, other, _) in find_duplicates(texts, slower, options, encoder)]


def drop_near_repeats(staged: Staged, pairs: Sequence[tuple[bytes, bytes]]) -> None:
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
            with_all = [before.get(one, set()) for one in positives] or [before.get(b"", set())]
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


def group(staged: Staged, pairs: Iterable[tuple[bytes, bytes]]) -> Groups:
    """Which examples have to stay in one split: those that share a text, a near text, or a column's value."""
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
        """The key that stands for all that hang together with this one."""
        row = self._row.get(key)
        return key if row is None else self._keys[self._groups.find(row)]

    def _number(self, key: bytes) -> int:
        return self._row.setdefault(key, len(self._row))


def _is_repeat(
    staged: Staged, example: Example, keys: tuple[bytes, ...], split: int, labels_of: dict[tuple[int, bytes], str]
) -> bool:
    # positives in any order are the same positives; other negatives or another prompt make another record, another
    # label or score doesn't make another text
    what, label = b"".join((keys[0], *sorted(keys[1:]))), ""
    if isinstance(example, RecordExample):
        record = example.record
        what += b"".join(sorted(text_key(text) for text in record.neg)) + (record.prompt or "").encode()
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
    """The task and the label, as far as there are any."""
    return " ".join(filter(None, (getattr(example, "task", ""), example.label_text())))


def _values(example: Example, columns: list[str]) -> tuple[str, ...]:
    if not columns:
        return ()
    found = {**example.extra, "task": getattr(example, "task", None) or None}
    if isinstance(example, RecordExample):
        found |= {"id": example.record.id, "task": example.record.task}
    missing = [name for name in columns if found.get(name) is None]
    if missing:
        raise DataError(
            f"no '{missing[0]}' to group by in {' | '.join(example.own_texts())[:60]!r}; it has "
            f"{', '.join(name for name, value in found.items() if value is not None) or 'no other columns'}"
        )
    return tuple(str(found[name]) for name in columns)
