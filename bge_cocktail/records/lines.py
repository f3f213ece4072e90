"""JSON Lines with the file and line of whatever is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bge_cocktail.errors import DataError
from bge_cocktail.records.record import is_broken


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The JSON value of each line that isn't blank, with its place.

    Yields:
        ``(file:line, value)``

    Raises:
        DataError: No such file, not UTF-8, or a line that isn't JSON.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    with file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                # numbers such as NaN are no JSON, though Python would read them
                yield where, json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8 at byte {error.start} of the line") from None
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: broken JSON at column {error.colno}: {error.msg}") from None
            except ValueError as error:
                raise DataError(f"{where}: broken JSON: {error}") from None


def required_text(value: Any, name: str, where: str, *, may_be_empty: bool = False) -> str:
    """A text field of a JSON object.

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


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")
