"""The folder that holds what is unfinished, and says what it will be."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bge_cocktail.core.errors import CocktailError, UsageError
from bge_cocktail.core.outputs import write_json
from bge_cocktail.core.runs import BAD_BATCH_FILE, RUN_FILE, finished_key
from bge_cocktail.training.engine.processes import Processes

log = logging.getLogger(__name__)


@contextmanager
def work_folder(working: Path, what: str, key: str, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Make the folder, or go on with it; as long as this lasts, no other process does.

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
    with _alone(working, what):
        _begin(working, what, key, resume, overwrite)
        yield


@contextmanager
def shared_work_folder(
    processes: Processes, working: Path, what: str, key: str, *, resume: bool, overwrite: bool
) -> Iterator[None]:
    """`work_folder` for several processes: the first one makes the folder, the others wait for it.

    Args:
        processes: All of them.
        working, what, key, resume, overwrite: See `work_folder`.

    Raises:
        CocktailError: A process on another machine doesn't see the folder.
    """
    with ExitStack() as held:
        with processes.first_alone():
            if processes.is_first:
                held.enter_context(work_folder(working, what, key, resume=resume, overwrite=overwrite))
            if not working.is_dir():
                raise CocktailError(
                    f"this machine doesn't see {working}, which the first one made: they need a shared disk"
                )
        yield


def _begin(working: Path, what: str, key: str, resume: bool, overwrite: bool) -> None:
    if working.exists():
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


def _came_far(working: Path) -> bool:
    """Whether there is anything to go on from, and no loss that was no number."""
    if (working / BAD_BATCH_FILE).is_file():
        return False
    return any(path.is_file() and path.name != RUN_FILE for path in working.rglob("*"))


@contextmanager
def _alone(working: Path, what: str) -> Iterator[None]:
    """Hold a lock beside the folder, which a killed process leaves behind unlocked.

    Raises:
        UsageError: Another process holds it.
    """
    from filelock import FileLock, Timeout

    working.parent.mkdir(parents=True, exist_ok=True)
    path = working.with_name(f".{working.name}.lock")
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"another {what} is going on in {working}; choose another output, or wait") from None
    try:
        yield
    finally:
        with suppress(OSError):  # an open file can't be removed on every system
            path.unlink()
        lock.release()
