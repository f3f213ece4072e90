"""Rows of CSV, TSV and Parquet files."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bge_cocktail.errors import DataError
from bge_cocktail.records.opening import Rejects, text_lines


def read_table(path: Path, delimiter: str, rejects: Rejects) -> Iterator[tuple[str, dict[str, Any]]]:
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
        if not cells or not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _checked_header([cell.strip() for cell in cells], where)
            continue
        if len(cells) != len(header):
            message = f"{where}: expected {len(header)} cells ({', '.join(header)}), got {len(cells)}"
            rejects.add(DataError(message), where, delimiter.join(cells))
            continue
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
