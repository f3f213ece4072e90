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
                    staged.labels.append(changed.label_text())
                    staged.columns.append(_values(changed, options.group_by))
                staged.fixed.append(split)
                staged.only_records &= isinstance(changed, RecordExample)
                if census is not None:
                    census.add(changed)
                file.write(json_line(changed.to_json()))
    if not staged.fixed:
        raise DataError(f"nothing is left of {staged.read} examples: {dict(staged.dropped)}")
    return staged


def alike(staged: Staged, options: Preparing, encoder: Encoder | None) -> list[tuple[bytes, bytes]]:
    """Keys of texts that the slower finders (near, semantic) take for the same."""
    slower = [name for name in options.duplicates if name != "exact"]
    if not slower:
        return []
    texts = [text for example in staged.examples() for text in example.own_texts()]
    keys = [key for own in staged.keys for key in own]
    found = find_duplicates(texts, options.model_copy(update={"duplicates": slower}), encoder)
    return [(keys[one], keys[other]) for _, (one, other, _) in found]


def drop_near_repeats(staged: Staged, pairs: Sequence[tuple[bytes, bytes]]) -> None:
    """Take out examples whose query and a positive (or whose text, with the same label) are near an earlier one's."""
    near: dict[bytes, set[bytes]] = {}
    for one, other in pairs:
        near.setdefault(one, {one}).add(other)
        near.setdefault(other, {other}).add(one)
    if not near:
        return
    seen: dict[tuple[int, str, bytes], list[int]] = {}
    kept: list[int] = []
    working = staged.path.with_suffix(".kept")
    with working.open("wb") as file:
        for number, line in enumerate(staged.lines()):
            query, *positives = staged.keys[number]
            place = (staged.fixed[number], staged.labels[number])
            around = set().union(*(near.get(key, {key}) for key in positives))
            # the same query with other positives is no repeat; a near query or positive may be
            if any(
                not positives or around & set(staged.keys[other][1:])
                for key in near.get(query, {query})
                for other in seen.get((*place, key), ())
            ):
                staged.drop("near-duplicate of another", parse(line))
                continue
            seen.setdefault((*place, query), []).append(number)
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


def _is_repeat(
    staged: Staged, example: Example, keys: tuple[bytes, ...], split: int, labels_of: dict[tuple[int, bytes], str]
) -> bool:
    # positives in any order are the same positives; another label or task doesn't make another text of it
    identity = (split, xxhash.xxh3_128_digest(b"".join((keys[0], *sorted(keys[1:])))))
    label = "" if isinstance(example, RecordExample) else example.label_text()
    if identity not in labels_of:
        labels_of[identity] = label
        return False
    staged.drop("exact duplicate" if labels_of[identity] == label else "the same text with another label", example)
    return True


def _values(example: Example, columns: list[str]) -> tuple[str, ...]:
    if not columns:
        return ()
    found = {**example.extra}
    if isinstance(example, RecordExample):
        found |= {"id": example.record.id, "task": example.record.task}
    missing = [name for name in columns if found.get(name) is None]
    if missing:
        raise DataError(
            f"no '{missing[0]}' to group by in {' | '.join(example.own_texts())[:60]!r}; it has "
            f"{', '.join(name for name, value in found.items() if value is not None) or 'no other columns'}"
        )
    return tuple(str(found[name]) for name in columns)
