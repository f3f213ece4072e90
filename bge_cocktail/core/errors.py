"""Errors that a person reads: where, what was seen, what is allowed, the nearest right name.

Messages name options as Python spells them, between backticks: ```base```, ```prompts_from=N```,
```normalise=False```. The command line shows them as flags, a run file as its own lines.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Container, Iterable
from pathlib import Path


class CocktailError(Exception):
    """Something failed while running; the message is complete, no traceback is needed."""

    exit_code = 1


class DataError(CocktailError):
    """The data or a model folder is not what it should be."""


class UsageError(CocktailError):
    """An option, a name or a run file is wrong."""

    exit_code = 2


class GateError(CocktailError):
    """What was asked for as a condition doesn't hold."""

    exit_code = 3


class MissingExtra(CocktailError):
    """An optional package is needed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed; {how_to_install(extra)}")


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra; the package is on no index, so it is that of a checkout."""
    return f"in the checkout: pip install -c constraints.txt '.[{extra}]'"


_OPTION = re.compile(r"`([a-z][a-z_]*)(?:=([^`]*))?`")


def options_as_flags(text: str, known: Container[str] | None = None) -> str:
    """Return a message with its options as flags: ``--base``, ``--prompts-from N``, ``--no-normalise``.

    Args:
        text: The message.
        known: Names of options; what stands between backticks and is none of them is another's word, and stays.
    """

    def flag(match: re.Match[str]) -> str:
        if known is not None and match[1] not in known:
            return match[0]
        name, value = match[1].replace("_", "-"), match[2]
        if value == "False":
            return f"--no-{name}"
        return f"--{name}" if value in (None, "True") else f"--{name} {value}"

    return _OPTION.sub(flag, text)


def options_as_settings(text: str) -> str:
    """Return a message with its options as lines of a run file: ``base``, ``prompts_from = N``."""

    def setting(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        return name if value is None else f"{name} = {value.lower() if value in ('True', 'False') else value}"

    return _OPTION.sub(setting, text)


# control characters, escape among them, and what turns the direction of text; joiners, which scripts need, stay
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return a text without what moves a terminal's cursor or colours it: such characters are shown as escapes."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


_MOST_NAMES = 100


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return a closing phrase that names the nearest right word, or lists them all.

    Args:
        word: What was seen.
        allowed: What would have been right.

    Returns:
        `` Did you mean 'x'?`` or `` Allowed: a, b, c.``
    """
    words = sorted(set(allowed) - {word})
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    more = f", and {len(words) - _MOST_NAMES:,} more" if len(words) > _MOST_NAMES else ""
    return f" Allowed: {', '.join(words[:_MOST_NAMES])}{more}." if words else ""


def near_path(name: str) -> str:
    """Return a closing phrase that names what is there under nearly the same path; empty where nothing is."""
    path = Path(name).expanduser()
    try:
        there = [file.name for file in path.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, there, n=1, cutoff=0.75)
    return f" Did you mean '{path.with_name(close[0])}'?" if close else ""


def explain_os_error(error: OSError) -> str:
    """Return one line for an operating-system error, with the cure for the common ones."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}no space left on the disk; nothing half-written was kept. Free some space and run again."
    if error.errno == errno.EFBIG:
        return f"{where}the file would be larger than the system allows; nothing half-written was kept."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}not allowed to read or write here ({error.strerror})."
    if error.errno == errno.ENOENT:
        return f"{where}no such file or folder."
    return f"{where}{error.strerror or error}"
