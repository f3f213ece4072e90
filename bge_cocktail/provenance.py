"""What made an output: hashes, versions, options; and outputs that are complete or absent."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xxhash

from bge_cocktail.errors import CocktailError, UsageError

RUN_FILE = "run.json"
RECIPE_FILE = "recipe.toml"
BAD_BATCH_FILE = "bad_batch.jsonl"
# written for people or by us beside a model; they say nothing about how it embeds
NOT_THE_MODEL = frozenset(
    {
        RUN_FILE,
        RECIPE_FILE,
        "README.md",
        ".gitattributes",
        "curves.jsonl",
        "curves.png",
        "search.png",
        "data_config.json",
    }
)
_PACKAGES = ("bge-cocktail", "torch", "transformers", "sentence-transformers", "faiss-cpu", "numpy")


def hash_bytes(content: bytes) -> str:
    """xxh3-128 of some bytes, as 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(content)


def hash_value(value: Any) -> str:
    """Hash of anything that JSON can hold; the order of keys doesn't matter."""
    return hash_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode())


def hash_file(path: Path) -> str:
    """xxh3-128 of a file's content; as fast as reading it, so no result needs to be remembered."""
    digest = xxhash.xxh3_128()
    buffer = bytearray(1 << 20)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def hash_path(path: Path, known: Mapping[Path, Callable[[], str]] | None = None) -> str:
    """Hash of a file, or of the names and contents of all files in a folder.

    Files that only describe (run.json, README.md) don't count, so a model's hash is a hash of what embeds.

    Args:
        path: The file or folder.
        known: Gives the hash of a file in the folder that has been read already.
    """
    known = known or {}
    if path.is_file():
        return hash_file(path)
    names = sorted(
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if file.is_file() and file.name not in NOT_THE_MODEL and not file.name.endswith(".pyc")
    )
    return hash_value(
        [(name, known[path / name]() if path / name in known else hash_file(path / name)) for name in names]
    )


# the words that the command line was started with
_started_as: ContextVar[tuple[str, ...]] = ContextVar("started_as", default=())


@contextmanager
def started_as(words: Iterable[str], environment: Mapping[str, str]) -> Iterator[None]:
    """What is made inside notes the command that made it, so that it can be repeated.

    Args:
        words: Of the command, after ``bge-cocktail``.
        environment: Its variables; those that are options, and torchrun's numbers of processes, are part of it.
    """
    # where embeddings are kept changes nothing
    names = [name for name in sorted(environment) if name.startswith("BGE_COCKTAIL_") and name != "BGE_COCKTAIL_CACHE"]
    options = [f"{name}={environment[name]}" for name in names]
    program = ["bge-cocktail"]
    if int(environment.get("WORLD_SIZE", "1")) > 1:
        here = environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"])
        program = ["torchrun", "--nproc-per-node", here, "-m", "bge_cocktail"]
    token = _started_as.set((*options, *program, *words))
    try:
        yield
    finally:
        _started_as.reset(token)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe_run(
    command: str, *, options: Mapping[str, Any], inputs: Mapping[str, str], seconds: float, **more: Any
) -> dict[str, Any]:
    """What goes into run.json.

    Args:
        command: The step that ran.
        options: All options, defaults too.
        inputs: Path or name of every input, and its hash.
        seconds: Wall time of the step.
        more: Whatever else the step found.
    """
    return {
        "command": command,
        "key": step_key(command, options, inputs),
        "options": dict(options),
        "inputs": dict(inputs),
        **more,
        **({"started_as": shlex.join(_started_as.get())} if _started_as.get() else {}),
        "versions": versions(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 2),
    }


def step_key(command: str, options: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Names a step by what it does and the content (not the place) of what it does it to, in its order."""
    return hash_value([command, dict(options), list(inputs.values())])


def finished_key(folder: Path) -> str | None:
    """The key of the step that made a folder; None if none did."""
    try:
        key = json.loads((folder / RUN_FILE).read_text(encoding="utf-8")).get("key")
    except (OSError, ValueError, AttributeError):
        return None
    return key if isinstance(key, str) else None


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
    if path.resolve() == Path.cwd():
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
        raise UsageError(f"{path} exists already; choose another output or add --overwrite")
    if (path / "mined").is_dir() and (path / "tuned").is_dir():
        raise UsageError(f"{path} is a whole run, not the output of one step; choose another output")
    if finished_key(path) is None:
        raise UsageError(
            f"{path} was not made by bge-cocktail (it holds no {RUN_FILE}), so --overwrite leaves it alone"
        )


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
    working = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    working.mkdir()
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
    working = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield working
        _sync(working)
        working.replace(path)
        _sync(path.parent)
    finally:
        working.unlink(missing_ok=True)


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
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
