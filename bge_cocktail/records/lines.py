"""JSON Lines with the file and line of whatever is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from bge_cocktail.errors import DataError
from bge_cocktail.records.opening import Rejects, byte_lines
from bge_cocktail.records.record import is_broken

# eight times as fast as a regular expression
_AS_ZEROS, _LONG_NUMBER = bytes.maketrans(b"123456789", b"0" * 9), b"0" * 19


def read_lines(path: Path, rejects: Rejects | None = None) -> Iterator[tuple[str, Any]]:
    """The JSON value of each line that isn't blank, with its place.

    Args:
        path: A plain, gzip or zstd file.
        rejects: Takes bad lines; without it, the first one ends the reading.

    Yields:
        ``(file:line, value)``

    Raises:
        DataError: No such file, not UTF-8, or a line that isn't JSON.
    """
    rejects = rejects or Rejects()
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
    """The JSON value of a line, whole numbers of any size.

    Raises:
        DataError: It isn't UTF-8 or isn't JSON.
    """
    try:
        # orjson makes floats of whole numbers beyond 64 bits
        if _LONG_NUMBER not in line.translate(_AS_ZEROS):
            return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass  # most of it is wrong, and the slow reader can say why
    try:
        # numbers such as NaN are no JSON, though Python would read them
        return json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start} of the line") from None
    except json.JSONDecodeError as error:
        if line.lstrip()[:1] == b"[" and where.endswith(":1"):
            raise DataError(f"{where}: a JSON array; expected JSON Lines, one object a line") from None
        cut = "" if line.endswith(b"\n") else " (the file ends in the middle of the line)"
        raise DataError(f"{where}: broken JSON at column {error.pos + 1}: {error.msg}{cut}") from None
    except RecursionError:
        raise DataError(f"{where}: broken JSON: nested too deep") from None
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
