"""Rows of JSON Lines, CSV, TSV and Parquet files, plain or compressed, and what becomes of bad rows."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import orjson

from bge_cocktail.core.errors import DataError
from bge_cocktail.data.record import is_broken

Rows = Iterator[tuple[str, Any]]
"""Rows with their places."""
KINDS = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
LINE_LIMIT = 64 << 20
SHOWN = 2000
REASONS = 50
# an id or a label is not part of the reason
_VALUE = re.compile(r"\b(id|label) '.*?'")


_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class BadRows:
    """Bad rows: the first one ends the reading, or all are counted and kept.

    Args:
        skip: Whether to go on after a bad row.
        file: Where bad rows are written, as JSON Lines of ``where``, ``reason`` and the ``row`` (its first
            2,000 characters).
    """

    def __init__(self, skip: bool = False, file: IO[str] | None = None) -> None:
        self.skip, self._file = skip, file
        self.reasons: Counter[str] = Counter()
        self.parts: Counter[str] = Counter()
        """What was left out of rows that are kept."""
        self.examples: dict[str, str] = {}

    def note(self, reason: str) -> None:
        """Count a row that is right, but that nothing can be made of."""
        self.reasons[reason] += 1

    def note_part(self, reason: str) -> None:
        """Count what is left out of a row that is kept."""
        self.parts[reason] += 1

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


def text_lines(path: Path, rejects: BadRows) -> Iterator[tuple[int, str]]:
    """Numbered lines as text; lines that aren't UTF-8 are bad rows."""
    for number, line in byte_lines(path):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"{path}:{number}"
            message = f"{where}: not UTF-8 at byte {error.start} of the line; save it as UTF-8"
            rejects.add(DataError(message), where, line)


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
    if path.is_fifo():
        raise DataError(f"{path} is a pipe, which can be read but once; put what comes out of it into a file")
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


_SPACED_COLON = re.compile(rb'"\s+:')
# eight times as fast as a regular expression
_AS_ZEROS, _LONG_NUMBER = bytes.maketrans(b"123456789", b"0" * 9), b"0" * 19


def read_lines(path: Path, rejects: BadRows | None = None) -> Iterator[tuple[str, Any]]:
    """Yield the JSON value of each line that isn't blank, with its place.

    Args:
        path: A plain, gzip or zstd file.
        rejects: Takes bad lines; without it, the first one ends the reading.

    Yields:
        ``(file:line, value)``

    Raises:
        DataError: No such file, not UTF-8, or a line that isn't JSON.
    """
    rejects = rejects or BadRows()
    for number, line in byte_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = load_json(line, where)
        except DataError as error:
            rejects.add(error, where, line)
            continue
        yield where, value


def load_json(line: bytes, where: str) -> Any:
    """Return the JSON value of a line, whole numbers of any size.

    Raises:
        DataError: It isn't UTF-8 or isn't JSON.
    """
    try:
        # orjson makes floats of whole numbers beyond 64 bits
        if _LONG_NUMBER not in line.translate(_AS_ZEROS):
            value = orjson.loads(line)
            # it takes the last of two values of a key; where that may be so, the slow reader looks
            if line.count(b'":') == _count_keys(value) and not _SPACED_COLON.search(line):
                return value
    except orjson.JSONDecodeError:
        pass  # most of it is wrong, and the slow reader can say why
    try:
        # numbers such as NaN are no JSON, though Python would read them
        return json.loads(
            line.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeated_keys
        )
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start} of the line; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        if line.lstrip()[:1] == b"[" and where.endswith(":1"):
            raise DataError(f"{where}: a JSON array; expected JSON Lines, one object a line") from None
        if line.strip() == b"{":
            raise DataError(
                f"{where}: one JSON object over several lines; expected JSON Lines, one object a line"
            ) from None
        cut = "" if line.endswith(b"\n") else " (the file ends in the middle of the line)"
        raise DataError(f"{where}: broken JSON at column {error.pos + 1}: {error.msg}{cut}") from None
    except RecursionError:
        raise DataError(f"{where}: broken JSON: nested too deep") from None
    except ValueError as error:
        raise DataError(f"{where}: broken JSON: {error}") from None


def required_text(value: Any, name: str, where: str, *, may_be_empty: bool = False) -> str:
    """Return a text field of a JSON object.

    Raises:
        DataError: It is missing, empty or no text.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object with '{name}', got {type(value).__name__}")
    if name not in value:
        raise DataError(f"{where}: '{name}' is missing; found {', '.join(value) or 'nothing'}")
    text = value[name]
    if not isinstance(text, str):
        raise DataError(f"{where}: '{name}' must be a text, got {text!r}")
    if not text.strip() and not may_be_empty:
        raise DataError(f"{where}: '{name}' is empty")
    if is_broken(text):
        raise DataError(f"{where}: '{name}' holds half of a character (a lone surrogate)")
    return text


def _count_keys(value: Any) -> int:
    """Return how many keys a JSON value has, those of inner objects too; lists of texts are not walked."""
    kind = type(value)
    if kind is list:
        return sum(map(_count_keys, value)) if value and type(value[0]) in (dict, list) else 0
    if kind is not dict:
        return 0
    count = len(value)
    for content in value.values():
        if type(content) in (dict, list):
            count += _count_keys(content)
    return count


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{twice}' stands twice in an object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


def read_table(path: Path, delimiter: str, rejects: BadRows) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a CSV or TSV file whose first line names the columns.

    Args:
        path: A plain, gzip or zstd file in UTF-8.
        delimiter: Between cells.
        rejects: Takes bad rows.

    Yields:
        ``(file:line, cells by column)``; the line is the one on which the row begins.

    Raises:
        DataError: No column names, or a bad row that isn't skipped.
    """
    csv.field_size_limit(sys.maxsize)
    at = 0

    def lines() -> Iterator[str]:
        nonlocal at
        for number, line in text_lines(path, rejects):
            at = number
            yield line

    # in TSV files a quote is a quote (MS MARCO, T2Ranking); cells hold no tabs there, so nothing needs quoting
    if delimiter == "\t":
        reader = csv.reader(lines(), delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    # empty lines of a single column: rows without text, but for those at the end of the file
    empty: list[str] = []
    while True:
        begins = at + 1
        where = f"{path}:{begins}"
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            broken = DataError(f"{where}: broken quoting: {error} (the row ends at line {at})")
            if "end of data" in str(error):  # the rest of the file was read as one cell
                raise broken from None
            rejects.add(broken, where, f"lines {begins} to {at}")
            continue
        if not any(cell.strip() for cell in cells):
            if header is not None and len(header) == 1:
                empty.append(where)
            continue
        if header is None:
            header = _checked_header([cell.strip() for cell in cells], where)
            continue
        if len(cells) != len(header):
            message = f"{where}: expected {len(header)} cells ({', '.join(header)}), got {len(cells)}"
            rejects.add(DataError(message), where, delimiter.join(cells))
            continue
        for place in empty:
            yield place, dict.fromkeys(header, "")
        empty.clear()
        yield where, dict(zip(header, cells, strict=True))
    if header is None:
        raise DataError(f"{path} is empty: expected a first line with the names of the columns")


def read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a Parquet file, a batch at a time.

    Yields:
        ``(file:row N, cells by column)``

    Raises:
        DataError: No Parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:row {number}", row
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file, or a damaged one: {error}") from None


def _checked_header(names: list[str], where: str) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where}: the column '{twice[0]}' is named twice")
    if "" in names:
        raise DataError(f"{where}: column {names.index('') + 1} has no name; the first line names the columns")
    return names


def kind_of(path: Path) -> str:
    """``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet``, whatever compresses it; empty for other files."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".zst", ".zstd")]
    kind = suffixes[-1] if suffixes else ""
    return {".json": ".jsonl", ".ndjson": ".jsonl"}.get(kind, kind) if kind in KINDS else ""


def rows_of_file(path: Path, rejects: BadRows) -> Rows:
    """Return the rows of a file, by its kind.

    Raises:
        DataError: Another kind of file, or a broken one.
    """
    kind = kind_of(path)
    if kind == ".jsonl":
        return read_lines(path, rejects)
    if kind in (".csv", ".tsv"):
        return read_table(path, "\t" if kind == ".tsv" else ",", rejects)
    if kind == ".parquet":
        return read_parquet(path)
    raise DataError(f"{path}: unknown kind of file; allowed: {', '.join(KINDS)}, each also with .gz or .zst")
