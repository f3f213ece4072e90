"""Run the notebooks of docs/notebooks, each in a kernel and a folder of its own; an error in a cell is one here.

    .venv/bin/python scripts/run_notebooks.py [--write] [NAME...]

With --write, what they print and draw is kept in them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parent.parent / "docs/notebooks"


def run_notebook(path: Path, write: bool) -> None:
    """Run one, and keep its outputs if asked to.

    Raises:
        CellExecutionError: A cell failed.
    """
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory(prefix="bge-cocktail-notebook-") as folder:
        where = {"metadata": {"path": folder}}
        NotebookClient(notebook, kernel_name="python3", timeout=600, resources=where, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # what came on standard error are progress and warnings, with the paths of this run
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    if write:
        notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(notebook, path)  # type: ignore[no-untyped-call]


def main() -> None:
    """Run those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    paths = [FOLDER / f"{name}.ipynb" for name in arguments.names] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        begun = time.monotonic()
        try:
            run_notebook(path, arguments.write)
        except CellExecutionError as error:
            sys.exit(f"{path.name}: {error}")
        print(f"{path.name}: {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
