"""Which commit, day and machine the tables of docs/ are of, and how much of what they measure has changed since.

    .venv/bin/python scripts/figures.py [--write]

A script that puts a table into docs/ (`--write`) notes it in docs/results/figures.json, with the hashes of the files
that the table measures. Without `--write` this one says which marks of docs/ are not as they should be, for CI; with
it, they are put right.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FIGURES = DOCS / "results/figures.json"
PACKAGE = "bge_cocktail"


@dataclass(frozen=True)
class Table:
    """A table of docs/.

    Attributes:
        page: Where it stands.
        title: What the page calls it.
        code: What it measures, as paths in the package.
    """

    page: str
    title: str
    code: tuple[str, ...]


_TRAINING = ("training/encoder", "training/engine", "losses")
_CLASSIFYING = ("training/classifier", "training/engine")
TABLES = {
    "mine": Table("benchmarks.md", "mining", ("mining", "search", "models/embed.py", "models/encoder.py")),
    "train": Table("benchmarks.md", "training", _TRAINING),
    "classify": Table("benchmarks.md", "predicting labels", _CLASSIFYING),
    "evaluate": Table("benchmarks.md", "evaluating", ("evaluating", "search", "models/embed.py")),
    "merge": Table("benchmarks.md", "merging", ("merging",)),
    "serve": Table("benchmarks.md", "serving", ("serving",)),
    "export": Table("benchmarks.md", "exports", ("serving/export.py", "serving/graph.py", "serving/runtime.py")),
    "lm-cocktail": Table("results.md", "LM-Cocktail done again", (*_TRAINING, "merging")),
    "false negatives": Table("results.md", "negatives that are relevant", ("mining",)),
    "ways to train": Table("results.md", "ways to train", _TRAINING),
    "ways to classify": Table("results.md", "ways to classify", _CLASSIFYING),
    "few shot": Table("results.md", "few texts", _CLASSIFYING),
    "classifiers and their probe": Table("results.md", "classifiers and their probe", _CLASSIFYING),
    "cocktails of classifiers": Table("results.md", "cocktails of classifiers", (*_CLASSIFYING, "merging")),
    "updates": Table("results.md", "updates", ("merging/methods.py", *_TRAINING)),
    "written queries": Table("results.md", "written queries", ("synthesizing", *_TRAINING)),
    "defaults": Table("results.md", "defaults", (*_TRAINING, "mining")),
}


def note(name: str, root: Path = ROOT) -> None:
    """Keep that a table was measured now, with the code of this tree."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.strip()
    figures = _figures()
    figures[name] = {
        "commit": commit or "unknown",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{_processor()}, {cpu_count()} cores",
        "code": code_hashes(TABLES[name].code, root),
    }
    FIGURES.write_text(json.dumps(dict(sorted(figures.items())), indent=1) + "\n", encoding="utf-8")


def code_hashes(paths: Iterable[str], root: Path = ROOT) -> dict[str, str]:
    """Return the hash of each Python file at paths in the package; comments, docstrings and layout don't count."""
    hashes = {}
    for path in paths:
        place = root / PACKAGE / path
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            code = ast.dump(_without_docstrings(ast.parse(file.read_text(encoding="utf-8"))))
            hashes[file.relative_to(root / PACKAGE).as_posix()] = hashlib.sha256(code.encode()).hexdigest()[:8]
    return hashes


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree


def changed() -> dict[str, tuple[int, int]]:
    """Return of each table how many files of the code that it measures are other ones now, and how many there are."""
    found = {}
    for name, figure in _figures().items():
        now = code_hashes(TABLES[name].code)
        found[name] = sum(figure["code"].get(file) != one for file, one in now.items()), len(now)
    return found


def with_marks(page: str) -> str:
    """Return a page of docs/ with its table of commits, days and machines as it should be."""
    text = (DOCS / page).read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- figures -->")
    _, _, after = rest.partition("<!-- /figures -->")
    since, figures = changed(), _figures()
    lines = ["| table | figures of | on | files changed since |", "|---|---|---|---|"]
    for name, table in TABLES.items():
        if table.page == page and name in figures:
            figure = figures[name]
            others, files = since[name]
            cells = [table.title, f"{figure['commit']}, {figure['date']}", figure["machine"], f"{others} of {files}"]
            lines.append(f"| {' | '.join(cells)} |")
    return f"{before}<!-- figures -->\n" + "\n".join(lines) + f"\n<!-- /figures -->{after}"


def _figures() -> dict[str, dict[str, Any]]:
    return json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    """Say which marks are wrong, or put them right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    wrong = []
    for page in sorted({table.page for table in TABLES.values()}):
        marked = with_marks(page)
        if marked != (DOCS / page).read_text(encoding="utf-8"):
            wrong.append(page)
            if arguments.write:
                (DOCS / page).write_text(marked, encoding="utf-8")
    for name, (others, files) in changed().items():
        print(f"{name}: {others} of {files} files that it measures have changed since")
    if wrong and not arguments.write:
        raise SystemExit(f"the marks of {', '.join(wrong)} in docs/ are wrong; scripts/figures.py --write mends them")


if __name__ == "__main__":
    main()
