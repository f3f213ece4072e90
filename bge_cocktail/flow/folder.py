"""The folder that a run is written to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bge_cocktail.errors import UsageError
from bge_cocktail.layout import read_object
from bge_cocktail.outputs import refuse_nested, write_json
from bge_cocktail.provenance import RUN_FILE

COMMAND = "run"


def refuse_other_folder(path: Path, inputs: Iterable[Path]) -> None:
    """Raise unless a run may be written to a folder: a new one, one with nothing but run files, or one of a run.

    Args:
        path: The folder.
        inputs: What the run reads.

    Raises:
        UsageError: It is something else, or an input or in one.
    """
    if path.resolve() == Path.cwd():
        raise UsageError("the output can't be the folder that the command is started in; name another folder")
    refuse_nested(path, [one for one in inputs if one.exists()])
    if not path.exists():
        return
    if not path.is_dir():
        raise UsageError(f"{path} is a file; the output is a folder, choose another name")
    known = read_object(path / RUN_FILE).get("command") if (path / RUN_FILE).is_file() else None
    others = [one for one in path.iterdir() if one.suffix != ".toml" and not one.name.startswith(".")]
    if others and known != COMMAND:
        raise UsageError(f"{path} holds other things than a run of bge-cocktail; choose another output")


def begin_run(path: Path) -> None:
    """Make the folder, and have it say what it is before the first step is done."""
    path.mkdir(parents=True, exist_ok=True)
    if not (path / RUN_FILE).is_file():
        write_json(path / RUN_FILE, {"command": COMMAND, "unfinished": True})
