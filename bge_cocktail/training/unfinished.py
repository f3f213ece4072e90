"""The folder that holds what is unfinished, and says what it will be."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from pathlib import Path

from bge_cocktail.errors import UsageError
from bge_cocktail.outputs import write_json
from bge_cocktail.provenance import BAD_BATCH_FILE, RUN_FILE, finished_key

log = logging.getLogger(__name__)
LOCK_FILE = "lock"
# open as long as this process works in a folder, so that it is known to others that one does
_held: dict[Path, int] = {}


def begin(working: Path, what: str, key: str, *, resume: bool, overwrite: bool) -> None:
    """Make the folder, or go on with it.

    Args:
        working: The folder.
        what: What is done in it, in words for messages.
        key: Names it by its options and inputs.
        resume: Whether what is there is gone on with.
        overwrite: Whether what is there may be removed, however far it came.

    Raises:
        UsageError: What is there was made by something else, or from something else, is being worked in, or came too
            far to be removed unasked.
    """
    if working.exists():
        _refuse_two(working, what)
        found = finished_key(working)
        if found is None:
            raise UsageError(f"{working} is in the way and is no unfinished {what} of bge-cocktail; remove it")
        if resume and found != key:
            raise UsageError(
                f"{working} was made from other records, options, tasks or another model; remove it, or run without "
                "--resume"
            )
        if not resume and not overwrite and _came_far(working):
            raise UsageError(
                f"{working} holds an unfinished {what}: --resume goes on with it, --overwrite begins again"
            )
        if not resume:
            log.warning("the unfinished %s in %s is begun again", what, working)
            shutil.rmtree(working)
    working.mkdir(parents=True, exist_ok=True)
    write_json(working / RUN_FILE, {"command": what, "key": key, "unfinished": True})
    _hold(working)


def _came_far(working: Path) -> bool:
    """Whether there is anything to go on from, and no loss that was no number."""
    if (working / BAD_BATCH_FILE).is_file():
        return False
    return any(path.is_file() and path.name not in (RUN_FILE, LOCK_FILE) for path in working.rglob("*"))


def _refuse_two(working: Path, what: str) -> None:
    """Raise if another process works in the folder: it would lose its checkpoints.

    Raises:
        UsageError: One does.
    """
    _release(working)
    try:
        descriptor = os.open(working / LOCK_FILE, os.O_RDWR)
    except OSError:  # none was begun, or it can't be told
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"another {what} is going on in {working}; choose another output, or wait for it") from None
    except OSError:  # not every file system has locks
        pass
    finally:
        os.close(descriptor)


def _hold(working: Path) -> None:
    for done in [path for path in _held if not path.exists()]:
        _release(done)
    _held[working.resolve()] = os.open(working / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(_held[working.resolve()], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # not every file system has locks
        log.debug("no lock on %s", working)


def _release(working: Path) -> None:
    descriptor = _held.pop(working.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)
