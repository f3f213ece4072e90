"""What made an output: hashes, versions, options (run.json); and what its reader should know of it."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xxhash

from bge_cocktail.core.errors import DataError

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


# whole data sets are laid out with fewer
_MOST_LINKS = 1_000


def files_under(folder: Path) -> list[Path]:
    """Return all files of a folder and its sub-folders, those behind links too, in the order of their names.

    A link that leads back to a folder above it is not followed again.

    Raises:
        DataError: Links that lead to each other, so that there are thousands of ways to the same files.
    """
    files: list[Path] = []
    behind_links = 0
    above = {folder: frozenset({folder.resolve()})}
    for where, folders, names in os.walk(folder, followlinks=True):
        place = Path(where)
        here = above.pop(place)
        real = {name: (place / name).resolve() for name in folders}
        behind_links += sum((place / name).is_symlink() for name in folders)
        if behind_links > _MOST_LINKS:
            raise DataError(f"{folder}: more than {_MOST_LINKS:,} linked folders; they lead to each other")
        folders[:] = [name for name in folders if real[name] not in here]
        above |= {place / name: here | {real[name]} for name in folders}
        files += [place / name for name in names if (place / name).is_file()]
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())


def hash_path(path: Path, known: Mapping[Path, Callable[[], str]] | None = None) -> str:
    """Hash of a file, or of the names and contents of all files in a folder.

    Files that only describe (run.json, README.md) don't count, so a model's hash is a hash of what embeds. What lies
    behind links counts, as a reader would read it.

    Args:
        path: The file or folder.
        known: Gives the hash of a file in the folder that has been read already.
    """
    known = known or {}
    if path.is_file():
        return hash_file(path)
    names = [
        file.relative_to(path).as_posix()
        for file in files_under(path)
        if file.name not in NOT_THE_MODEL and not file.name.endswith(".pyc")
    ]
    return hash_value(
        [(name, known[path / name]() if path / name in known else hash_file(path / name)) for name in names]
    )


log = logging.getLogger(__name__)
FINDINGS = {
    "dev repeats train": "{subject}: {count} of {of} queries stand in train too; new ones would score less",
    "test repeats train": "{subject}: {count} of {of} judged texts stand in train too; new ones would score less",
    "query is its positive": "{subject}: {count} of {of} queries equal a positive of theirs, which teaches nothing",
    "query is a document": "{subject}: the text of {count} of {of} queries stands in the corpus as a document that "
    "isn't judged relevant; it takes the first rank",
    "unjudged duplicate": "{subject}: {count} relevant documents stand in the corpus a second time, unjudged; finding "
    "the other one counts as wrong",
    "few queries": "{subject}: {count} queries are few; below 30, intervals say little",
    "only answers": "{subject}: each of the {count} documents that are searched answers one of its queries; among "
    "others they are harder to find (bge-cocktail prepare takes documents without questions by `corpus`)",
    "equal embeddings": "{subject}: all {count} texts have the same embedding; the model tells nothing apart",
    "texts cut": "{subject}: {count} of {of} {what}",
    "prompt left out": "{subject}: it declares a prompt for {what}, and an empty one was chosen instead",
    "unknown tokens": "{subject}: {count} of {of} tokens are unknown to the tokenizer; is it of another language?",
    "no better than chance": "{subject}: the interval of the accuracy reaches down to the share of the largest class "
    "({what}); likely label errors mean nothing then",
}
"""What a reader should know of data and models, by kind: the sentence that a command says and a report shows."""
_noted: ContextVar[list[dict[str, Any]] | None] = ContextVar("noted", default=None)


def begin_findings() -> None:
    """Begin a step: what is found from now on stands in the run.json that the step ends with."""
    _noted.set([])


def noted_findings() -> list[dict[str, Any]]:
    """Return what was found in this step."""
    return list(_noted.get() or ())


def note_finding(kind: str, subject: str, count: int = 0, of: int = 0, what: str = "") -> None:
    """Say what a reader should know, once in a step, and keep it for the step's run.json.

    Args:
        kind: Of `FINDINGS`.
        subject: The task, model or data that it is about.
        count: How many.
        of: How many there are in all.
        what: What else the sentence names.
    """
    numbers = {"count": f"{count:,}", "of": f"{of:,}", "what": what}
    finding = {"kind": kind, "subject": subject, "said": FINDINGS[kind].format(subject=subject, **numbers)}
    noted = _noted.get()
    if noted is None:
        noted = []
        _noted.set(noted)
    if finding not in noted:
        noted.append(finding)
        log.warning("%s", finding["said"])


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
    installed = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def describe_run(
    command: str, *, options: Mapping[str, Any], inputs: Mapping[str, str], seconds: float, **more: Any
) -> dict[str, Any]:
    """Return what goes into run.json.

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
        **({"findings": noted_findings()} if noted_findings() else {}),
        **({"started_as": shlex.join(_started_as.get())} if _started_as.get() else {}),
        "versions": versions(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 2),
    }


def step_key(command: str, options: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Names a step by what it does and the content (not the place) of what it does it to, in its order."""
    return hash_value([command, dict(options), list(inputs.values())])


def finished_key(folder: Path) -> str | None:
    """Return the key of the step that made a folder; None if none did."""
    if not (folder / RUN_FILE).is_file():
        return None
    try:
        key = json.loads((folder / RUN_FILE).read_text(encoding="utf-8")).get("key")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return key if isinstance(key, str) else None
