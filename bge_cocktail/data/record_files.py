"""Reading and writing files of records; large ones stay on disk."""

from __future__ import annotations

import logging
import mmap
import string
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
import orjson
from numpy.typing import NDArray

from bge_cocktail.core.errors import DataError
from bge_cocktail.core.outputs import new_file
from bge_cocktail.core.runs import hash_file
from bge_cocktail.data.beir import is_beir
from bge_cocktail.data.examples import Example, RecordExample
from bge_cocktail.data.readers import LINE_LIMIT, BadRows, load_json
from bge_cocktail.data.record import Record, parse_record
from bge_cocktail.data.sources import read_examples

log = logging.getLogger(__name__)
RECORDS_FILE = "records.jsonl"


def read_records(path: str | Path, *, split: str = "train", columns: str = "") -> list[Record]:
    """Read training records.

    Args:
        path: A file (JSON Lines, CSV, TSV, Parquet; plain, gzip or zstd), a folder that `prepare` or `mine` wrote, a
            BEIR folder, or a data set of the hub.
        split: Which split of a folder or data set.
        columns: Which column is what (``query=question,pos=answer``); without it, told from the names.

    Raises:
        DataError: With file and line of the first thing that is wrong.
    """
    source = Path(path)
    if source.is_dir() and not is_beir(source):
        if (source / RECORDS_FILE).is_file():
            source = source / RECORDS_FILE
        elif not any(source.glob(f"{split}.*")):
            raise DataError(
                f"{path} holds no records: expected {RECORDS_FILE} or {split}.jsonl, or a BEIR folder "
                "(corpus.jsonl, queries.jsonl, qrels/)"
            )
    left_out = BadRows()
    name = str(source if source.exists() else path)
    records = records_of(read_examples(name, split=split, columns=columns, rejects=left_out), path)
    for reason, count in (left_out.reasons + left_out.parts).items():
        log.warning("%s: %d are left out: %s", path, count, reason)
    return records


def records_of(examples: Iterable[Example], path: str | Path) -> list[Record]:
    """Return the records that examples are.

    Args:
        examples: What was read.
        path: Where from, for the message.

    Raises:
        DataError: An example is something else.
    """
    records = []
    for example in examples:
        if not isinstance(example, RecordExample):
            raise DataError(
                f"{path} holds {'labelled texts' if len(example.own_texts()) == 1 else 'pairs of texts'}, no records; "
                f"make records from them: bge-cocktail prepare {path} -o FOLDER"
            )
        records.append(example.record)
    return records


Item = TypeVar("Item")


def spread(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """Return so many of the items, evenly spread over all and in their order; all of them without a limit."""
    if not limit or limit >= len(items):
        return items
    return [items[place] for place in np.linspace(0, len(items) - 1, limit).astype(int).tolist()]


def write_records(records: Iterable[Record], path: str | Path) -> None:
    """Write records as JSON Lines, whole or not at all."""
    with new_file(Path(path)) as working, working.open("wb") as file:
        for record in records:
            file.write(json_line(record.to_json()))


def json_line(value: object) -> bytes:
    """Return a value as one line of JSON in UTF-8, numbers of any size too."""
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        import json

        # what orjson can't: numbers beyond 64 bits, and halves of characters, which become escapes
        return (json.dumps(value, default=str) + "\n").encode()


LARGE = 64 << 20
# records that are in memory at once when all are gone through, and bytes in which lines are looked for
AT_ONCE, _LETTERS_AT_ONCE = 1000, 1 << 20


class RecordStore(Sequence[Record]):
    """The records of a JSON Lines file, mapped into memory: 8 bytes a record stay there, whatever their texts.

    Args:
        path: A plain (not compressed) file of records.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._name = path, str(path)
        self.noted: set[str] = set()
        """What was left out so far."""
        self._quiet = False
        with path.open("rb") as file:
            self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        starts, ends = _lines_of(self._content)
        if len(long := np.flatnonzero(ends - starts > LINE_LIMIT)):
            raise DataError(f"{path}:{long[0] + 1}: the line is longer than {LINE_LIMIT >> 20} MiB")
        first = np.frombuffer(self._content, np.uint8)[starts]
        maybe = np.flatnonzero(np.isin(first, np.frombuffer(string.whitespace.encode(), np.uint8)))
        blank = [line for line in maybe.tolist() if self._content[starts[line] : ends[line]].isspace()]
        self._lines = np.delete(np.arange(1, len(starts) + 1), blank)
        self._starts = np.delete(starts, blank)

    @cached_property
    def hash(self) -> str:
        """Of the file's content."""
        return hash_file(self.path)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [
                self._read(start, number)
                for start, number in zip(self._starts[index].tolist(), self._lines[index].tolist(), strict=True)
            ]
        return self._read(int(self._starts[index]), int(self._lines[index]))

    def _read(self, start: int, number: int) -> Record:
        """Return the record that begins at a byte of the file, in a line of it."""
        end = self._content.find(b"\n", start) + 1 or len(self._content)
        where = f"{self._name}:{number}"
        line = self._content[start:end]
        value = load_json(line.removeprefix(b"\xef\xbb\xbf") if start == 0 else line, where)
        return parse_record(value, where, lambda what: self.note([what]))

    def note(self, things: Iterable[str]) -> None:
        """Say once that something is left out; how often is known only when all has been read."""
        for what in sorted(set(things) - self.noted):
            self.noted.add(what)
            if not self._quiet:
                log.warning("%s: negatives are left out: %s", self.path, what)

    def quiet(self) -> None:
        """Keep what is left out to itself: in a process whose parent says it."""
        self._quiet = True

    def __iter__(self) -> Iterator[Record]:
        starts = range(0, len(self), AT_ONCE)
        return (record for start in starts for record in self[start : start + AT_ONCE])

    def __reduce__(self) -> tuple[type[RecordStore], tuple[Path]]:
        """For processes that prepare batches: each maps the file itself."""
        return RecordStore, (self.path,)


def _lines_of(content: mmap.mmap) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the lines of a file begin, and where they end."""
    found, letters = [], np.frombuffer(content, np.uint8)
    for start in range(0, len(letters), _LETTERS_AT_ONCE):
        found.append(start + 1 + np.flatnonzero(letters[start : start + _LETTERS_AT_ONCE] == ord("\n")))
    ends = np.concatenate(found)
    if not len(ends) or ends[-1] != len(content):
        ends = np.append(ends, len(content))
    return np.concatenate([[0], ends[:-1]]), ends


def open_records(path: str | Path, *, split: str = "train", large: int = LARGE) -> Sequence[Record]:
    """Records in memory, or on disk where there are many.

    Args:
        path: Whatever `read_records` takes.
        split: Which split of a folder or data set.
        large: Bytes from which a plain JSON Lines file of records stays on disk.

    Raises:
        DataError: With file and line of the first thing that is wrong; in a large file, when it is reached.
    """
    source = Path(path)
    candidates = [source / RECORDS_FILE, source / f"{split}.jsonl"] if source.is_dir() else [source]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None or file.suffix not in (".jsonl", ".json") or file.stat().st_size < large:
        return read_records(path, split=split)
    return RecordStore(file)
