"""The folder that holds what is unfinished, and says what it will be."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from bge_cocktail.errors import UsageError
from bge_cocktail.provenance import RUN_FILE, finished_key, write_json

log = logging.getLogger(__name__)


def begin(working: Path, what: str, key: str, resume: bool) -> None:
    """Make the folder, or go on with it.

    Args:
        working: The folder.
        what: What is done in it, in words for messages.
        key: Names it by its options and inputs.
        resume: Whether what is there is gone on with; else it is removed.

    Raises:
        UsageError: What is there was made by something else, or from something else.
    """
    if working.exists():
        found = finished_key(working)
        if found is None:
            raise UsageError(f"{working} is in the way and is no unfinished {what} of bge-cocktail; remove it")
        if resume and found != key:
            raise UsageError(
                f"{working} was made from other records, options, tasks or another model; remove it, or run without "
                "--resume"
            )
        if not resume:
            log.warning("an unfinished %s in %s is started again (--resume would go on with it)", what, working)
            shutil.rmtree(working)
    working.mkdir(parents=True, exist_ok=True)
    write_json(working / RUN_FILE, {"command": what, "key": key, "unfinished": True})
