"""Lines of plain, gzip and zstd files, and what becomes of rows that are wrong."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from bge_cocktail.errors import DataError

LINE_LIMIT = 64 << 20
SHOWN = 2000
REASONS = 50
# an id or a label is not part of the reason
_VALUE = re.compile(r"\b(id|label) '.*?'")
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class Rejects:
    """Bad rows: the first one ends the reading, or all are counted and kept.

    Args:
        skip: Whether to go on after a bad row.
        file: Where bad rows are written, as JSON Lines of ``where``, ``reason`` and the ``row`` (its first
            2,000 characters).
    """

    def __init__(self, skip: bool = False, file: IO[str] | None = None) -> None:
        self.skip, self._file = skip, file
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def note(self, reason: str) -> None:
        """Count a row that is right, but that nothing can be made of."""
        self.reasons[reason] += 1

    def add(self, error: DataError, where: str, row: Any) -> None:
        """Note a bad row.

        Raises:
            DataError: The one given, unless bad rows are skipped.
        """
        if not self.skip:
            raise error
        message = str(error).removeprefix(f"{where}: ")
        reason = _VALUE.sub(r"\1", message.split(":")[0].split("; found")[0].split(", got")[0])
        if reason not in self.reasons and len(self.reasons) >= REASONS:
            reason = "other reasons"
        self.reasons[reason] += 1
        self.examples.setdefault(reason, str(error))
        if self._file is not None:
            shown = row.decode("utf-8", "replace") if isinstance(row, bytes) else row
            shown = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False, default=str)
            line = {"where": where, "reason": message, "row": shown[:SHOWN]}
            # a lone surrogate can't be written; it is shown as an escape
            self._file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace").decode() + "\n")


def byte_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a plain, gzip or zstd file, told apart by their first bytes, without a byte-order mark.

    Raises:
        DataError: No such file, a line of more than 64 MiB, UTF-16, or a damaged or cut-off compressed file.
    """
    number = 0
    with _opened(path) as file:
        try:
            while line := file.readline(LINE_LIMIT + 1):
                number += 1
                if len(line) > LINE_LIMIT:
                    raise DataError(f"{path}:{number}: the line is longer than {LINE_LIMIT >> 20} MiB")
                if number == 1:
                    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise DataError(f"{path}: the file is UTF-16; save it as UTF-8")
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(path, number, error) from None
        except DataError:
            raise
        except Exception as error:
            if not isinstance(error, _zstd().ZstdError):
                raise
            raise _damaged(path, number, error) from None


def text_lines(path: Path, rejects: Rejects) -> Iterator[tuple[int, str]]:
    """Numbered lines as text; lines that aren't UTF-8 are bad rows."""
    for number, line in byte_lines(path):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"{path}:{number}"
            rejects.add(DataError(f"{where}: not UTF-8 at byte {error.start} of the line"), where, line)


def _damaged(path: Path, number: int, error: Exception) -> DataError:
    return DataError(f"{path}: the compressed file is damaged or cut off after line {number}: {error}")


def _zstd() -> Any:
    """Python 3.14's own module, or its backport."""
    try:
        return import_module("compression.zstd")
    except ImportError:
        return import_module("backports.zstd")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as raw:
            start = raw.read(4)
            raw.seek(0)
            if start.startswith(_GZIP):
                with gzip.open(raw) as unzipped:
                    yield unzipped
            elif start == _ZSTD:
                with _zstd().open(raw) as unzipped:
                    yield unzipped
            else:
                yield raw
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder, where a file is expected") from None
