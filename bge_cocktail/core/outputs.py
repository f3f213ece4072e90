"""Outputs that are complete or absent, and replace nothing of others; JSON files."""

from __future__ import annotations

import ctypes
import glob
import json
import os
import shutil
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import CocktailError, DataError, UsageError, printable
from bge_cocktail.core.runs import RUN_FILE, finished_key


def refuse_to_replace(path: Path, overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Raise unless `path` is free or may be replaced.

    Args:
        path: The output.
        overwrite: Whether an older output of this tool may be replaced.
        inputs: What the output is made from; names that are no paths are passed over.

    Raises:
        UsageError: It exists and `overwrite` is off, it holds an input or lies in one, it is a whole run, or it is
            something that this tool did not make.
    """
    if _resolved(path) == Path.cwd():
        raise UsageError("the output can't be the folder that the command is started in; name another folder")
    sources = [source for source in map(Path, inputs) if source.exists()]
    refuse_nested(path, sources)
    for source in sources:
        if path.resolve() in source.resolve().parents:
            raise UsageError(f"the output {path} holds an input ({source}); choose another output")
    above = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not os.access(above, os.W_OK):
        raise CocktailError(f"{above} can't be written to; choose another output")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir():
        raise UsageError(f"{path} is a file; the output is a folder, choose another name")
    if not overwrite:
        raise UsageError(f"{path} exists already; choose another output or add `overwrite`")
    if (path / "mined").is_dir() and (path / "tuned").is_dir():
        raise UsageError(f"{path} is a whole run, not the output of one step; choose another output")
    if finished_key(path) is None:
        raise UsageError(
            f"{path} was not made by bge-cocktail (it holds no {RUN_FILE}), so `overwrite` leaves it alone"
        )


def refuse_to_replace_file(path: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Raise unless a file may be written at `path`.

    Args:
        path: The output.
        overwrite: Whether a file that is there may be replaced.
        inputs: What the output is made from.

    Raises:
        UsageError: It exists and `overwrite` is off, is a folder, or is or lies in an input.
    """
    _resolved(path)
    refuse_nested(path, [source for source in inputs if source.exists()])
    if path.is_dir():
        raise UsageError(f"{path} is a folder; the output is a file, choose another name")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already; choose another name or add `overwrite`")


def _resolved(path: Path) -> Path:
    """Return where an output lies.

    Raises:
        UsageError: Its name is no text that can be shown, or it is a link that leads nowhere.
    """
    try:
        str(path).encode()
        resolved = path.resolve()
    except UnicodeEncodeError:
        raise UsageError(f"the output {str(path)!a} is no UTF-8; choose another name") from None
    except (RuntimeError, OSError):  # what Python raises for such a link depends on its version
        raise UsageError(f"the output {path} is a link that leads back to itself") from None
    if printable(path.name) != path.name or "\n" in path.name:
        raise UsageError(f"the output {path.name!r} has control characters in its name; choose another name")
    if path.is_symlink() and not path.exists():
        raise UsageError(f"the output {path} is a link to nothing; choose another output")
    return resolved


def refuse_nested(path: Path, sources: Iterable[Path]) -> None:
    """Raise if an output is an input or lies in one.

    Raises:
        UsageError: It does.
    """
    for source in sources:
        if source.resolve() in (path.resolve(), *path.resolve().parents):
            raise UsageError(f"the output {path} is or lies in an input ({source}); choose another output")


def require_space(folder: Path, needed: int) -> None:
    """Raise if the disk that holds `folder` has fewer than `needed` bytes free."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise CocktailError(
            f"{folder}: {needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free; nothing was written"
        )


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder that appears complete or not at all: written under a temporary name, synced, renamed.

    Args:
        path: The folder to make.
        overwrite: Whether a folder that this tool made may be replaced.

    Yields:
        The temporary folder to write into, on the same disk.
    """
    refuse_to_replace(path, overwrite)
    path = path.resolve()  # a link to an empty folder stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    with _temporary(path, Path.mkdir) as working:
        try:
            yield working
            for file in [*working.rglob("*"), working]:
                _make_readable(file)
                _sync(file)
            refuse_to_replace(path, overwrite)  # again: another run may have ended in the meantime
            _swap_in(working, path)
        finally:
            shutil.rmtree(working, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file that appears complete or not at all; replaces an older one.

    Yields:
        The temporary file to write, on the same disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    with _temporary(path, Path.touch) as working:
        try:
            yield working
            _sync(working)
            working.replace(path)
            _sync(path.parent)
        finally:
            working.unlink(missing_ok=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for what is needed only as long as a command runs; what killed ones left behind is removed."""
    path = Path(tempfile.gettempdir()) / "bge-cocktail"
    sweep(path)
    with _temporary(path, lambda new: new.mkdir(mode=0o700)) as working:
        try:
            yield working
        finally:
            shutil.rmtree(working, ignore_errors=True)


# the names that work in progress has, before and after it is locked
_NEW, _TEMPORARY = ".new", ".tmp"
_HEX = "[0-9a-f]" * 8
_FORGOTTEN_SECONDS = 60


@contextmanager
def _temporary(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Make a file or folder beside an output, locked as long as this process works on it.

    It gets its name once it is locked, so that nobody takes it for one that was left behind.
    """
    new = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}{_NEW}"
    make(new)
    lock = _lock(new)
    working = new.with_suffix(_TEMPORARY)
    try:
        new.rename(working)
        yield working
    finally:
        if lock is not None:
            os.close(lock)


def _lock(path: Path) -> int | None:
    """Return an open file that holds a lock on a path until it is closed; None where another holds it, or has none."""
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def sweep(path: Path) -> None:
    """Remove what processes that were killed left behind of an output; what a living one works on is locked."""
    prefix = glob.escape(f".{path.name}.")
    for left in path.parent.glob(f"{prefix}{_HEX}{_TEMPORARY}"):
        lock = _lock(left)
        if lock is not None:
            _remove(left)
            os.close(lock)
    for left in path.parent.glob(f"{prefix}{_HEX}{_NEW}"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _FORGOTTEN_SECONDS:
                _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def as_written(what: str | Path) -> Iterator[None]:
    """Read inside what this tool wrote; say so where it is something else, such as a damaged file.

    Raises:
        DataError: It is.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else 'no reason given'}"
        raise DataError(f"{what} is not as bge-cocktail wrote it; was it changed or damaged? ({reason})") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    with new_file(path) as working:
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
        working.write_text(text, encoding="utf-8", errors="backslashreplace")


def _swap_in(working: Path, path: Path) -> None:
    if path.exists():
        if not _exchange(working, path):
            old = working.with_suffix(".old")
            path.rename(old)
            working.rename(path)
            working = old
        shutil.rmtree(working)
    else:
        working.rename(path)
    _sync(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, so that a kill leaves either the old or the new one; False where it can't be."""
    if sys.platform != "linux":
        return False
    exchange, here = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _make_readable(path: Path) -> None:
    """Have a file's mode be the usual one: safetensors gives its files to their owner alone."""
    if path.is_file() and stat.S_IMODE(path.stat().st_mode) == 0o600:
        umask = os.umask(0)
        os.umask(umask)
        path.chmod(0o666 & ~umask)


def _sync(path: Path) -> None:
    if os.name == "nt":  # there, only files that are open for writing can be synced, and folders can't
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_pipe(path: Path) -> None:
    """Raise where reading would wait for somebody to write.

    Raises:
        DataError: A named pipe, or what isn't a file of the disk.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"{path} is a pipe, which can be read but once; put what comes out of it into a file")


def whole_characters(value: Any) -> Any:
    """Return a JSON value in which halves of characters (lone surrogates), which no file can hold, are replaced."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {whole_characters(name): whole_characters(content) for name, content in value.items()}
    return [whole_characters(content) for content in value] if isinstance(value, list) else value


def json_of(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        DataError: It is a pipe.
        OSError, ValueError, RecursionError: It is missing or broken.
    """
    refuse_pipe(path)
    return json_line(path.read_text(encoding="utf-8"))


def json_line(text: str) -> Any:
    """Return the value of a JSON text, its characters whole."""
    content = json.loads(text)
    return whole_characters(content) if "\\ud" in text.lower() else content


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of a model folder.

    Raises:
        DataError: It is missing or broken.
    """
    try:
        return json_of(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; is {path.parent} a whole model folder?") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file that holds names and values.

    Raises:
        DataError: It is missing or broken, or holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object of names and values, found {type(content).__name__}")
    return content
