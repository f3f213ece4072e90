"""The house rules: who imports whom, what --help costs, what is exported, how long a file is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, cpu_seconds, python, slowness

import bge_cocktail

PACKAGE = ROOT / "bge_cocktail"
# a room imports rooms of lower floors, and its own files; rooms on one floor don't import each other
FLOORS = [
    ["errors"],
    ["registry", "options", "progress"],
    ["provenance", "statistics", "ranking", "hub"],
    ["outputs"],
    ["records", "layout", "devices"],
    ["labels", "loading"],
    ["cache"],
    ["embed"],
    ["encoding"],
    ["search", "losses", "reranker"],
    ["wordsearch", "indexes"],
    ["mining", "merging", "tasks", "preparing"],
    ["evaluation", "benchmarks"],
    ["training", "significance", "outcome", "rundata", "runfile", "demo"],
    ["report"],
    ["tradeoff", "classifying"],
    ["flow"],
    ["cli"],
]
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Rooms that a file imports, anywhere in it but for type checking."""
    found = set()
    tree = ast.parse(path.read_text())
    for block in ast.walk(tree):
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test):
            block.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bge_cocktail."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("bge_cocktail.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    for other in imports(path) - {room}:
        assert FLOOR[other] < FLOOR[room], f"{room} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short_and_described(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    undescribed = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert undescribed == []


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from bge_cocktail.cli import main, COMMANDS\n"
        "for args in (['--help'], *([name, '--help'] for name in COMMANDS)):\n"
        "    result = CliRunner().invoke(main, args); assert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'faiss', 'datasets', 'mteb', 'numpy', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = python(code)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_help_is_quick() -> None:
    cpu_seconds("-m", "bge_cocktail", "--help", repeats=1)  # the first start compiles
    assert cpu_seconds("-m", "bge_cocktail", "--help", repeats=3) < 0.3 * slowness()


def test_exported_names() -> None:
    assert sorted(bge_cocktail.__all__) == [
        "CachedEncoder",
        "CocktailError",
        "Encoder",
        "Mined",
        "Record",
        "Score",
        "evaluate",
        "load_classifier",
        "load_encoder",
        "merge",
        "merge_classifiers",
        "mine",
        "open_task",
        "predict",
        "read_class_data",
        "read_records",
        "run",
        "train",
        "train_classifier",
        "write_records",
    ]
    for name in bge_cocktail.__all__:
        assert getattr(bge_cocktail, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        bge_cocktail.nothing  # noqa: B018


def test_the_library_does_not_print() -> None:
    for path in FILES:
        names = {node.func.id for node in ast.walk(ast.parse(path.read_text())) if is_call_by_name(node)}
        assert "print" not in names, path


def is_call_by_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def test_a_plugin_adds_to_a_registry(tmp_path: Path) -> None:
    """Another package's entry point is listed beside ours."""
    (tmp_path / "other.py").write_text('def middle(tensors, weights):\n    """In between."""\n    return tensors[0]\n')
    info = tmp_path / "other-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[bge_cocktail.merge-methods]\nmiddle = other:middle\n")
    result = subprocess.run(
        [sys.executable, "-m", "bge_cocktail", "list", "merge-methods", "--format", "json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path), "PATH": "", "HOME": str(tmp_path)},
        check=True,
    )
    assert '"middle": "In between."' in result.stdout
    assert '"linear": "Weighted mean' in result.stdout
