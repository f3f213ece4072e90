"""Records that stay on disk: a large file of them is read line by line, whenever a record is needed."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np

from bge_cocktail.provenance import hash_file
from bge_cocktail.records.files import RECORDS_FILE, read_records
from bge_cocktail.records.lines import load_json
from bge_cocktail.records.record import Record, parse_record

LARGE = 64 << 20


class RecordStore(Sequence[Record]):
    """The records of a JSON Lines file, mapped into memory: 8 bytes a record stay there, whatever their texts.

    Args:
        path: A plain (not compressed) file of records.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        starts, position, number = [], 0, 0
        numbers = []
        while position < len(self._content):
            end = self._content.find(b"\n", position) + 1 or len(self._content)
            number += 1
            if not self._content[position:end].isspace():
                starts.append(position)
                numbers.append(number)
            position = end
        self._starts = np.array(starts, np.int64)
        self._lines = np.array(numbers, np.int64)

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
            return [self[one] for one in range(*index.indices(len(self)))]
        start = int(self._starts[index])
        end = self._content.find(b"\n", start) + 1 or len(self._content)
        where = f"{self.path}:{self._lines[index]}"
        line = self._content[start:end]
        return parse_record(load_json(line.removeprefix(b"\xef\xbb\xbf") if start == 0 else line, where), where)

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __reduce__(self) -> tuple[type[RecordStore], tuple[Path]]:
        """For processes that prepare batches: each maps the file itself."""
        return RecordStore, (self.path,)


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
    file = next((one for one in candidates if one.is_file()), None)
    if file is None or file.suffix not in (".jsonl", ".json") or file.stat().st_size < large:
        return read_records(path, split=split)
    return RecordStore(file)
