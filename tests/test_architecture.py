"""The house rules: who imports whom, what is declared, what --help costs, what is exported, how long files are."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import ROOT, cpu_seconds, python, slowness

import bge_cocktail

PACKAGE = ROOT / "bge_cocktail"
# a room imports rooms of lower floors, and its own files; rooms on one floor don't import each other
FLOORS = [
    ["core"],
    ["options"],
    ["data"],
    ["models"],
    ["search", "losses"],
    ["preparing", "mining", "merging", "evaluating"],
    ["training", "synthesizing"],
    ["report", "serving"],
    ["flow"],
    ["cli"],
]
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
FILES = sorted(PACKAGE.rglob("*.py"))
NAME = "bge_cocktail"


def module_of(path: Path) -> str:
    """The dotted name that a file is imported by."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports_of(text: str, module: str, is_package: bool = False) -> set[str]:
    """The modules that a text imports, in whatever form and wherever in it, but for type checking."""
    tree = ast.parse(text)
    for block in ast.walk(tree):
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test):
            block.body = []
    above = module.split(".") if is_package else module.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = above[: len(above) - node.level + 1] if node.level else []
            source = ".".join([*parts, *([node.module] if node.module else [])])
            # what is imported may be a module, or a name in one
            found |= {f"{source}.{one.name}" if f"{source}.{one.name}" in MODULES else source for one in node.names}
    return found


IMPORTS = {name: imports_of(path.read_text(), name, path.name == "__init__.py") for name, path in MODULES.items()}
OWN = {name: {one for one in found if one.split(".")[0] == NAME} for name, found in IMPORTS.items()}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    room = room_of(module)
    if room in ("", "__main__"):
        return
    for other in OWN[module]:
        if room_of(other) != room:
            assert room_of(other), f"{module} imports the package itself"
            assert FLOOR[room_of(other)] < FLOOR[room], f"{module} imports {other}"


def test_no_circle_between_files() -> None:
    """Imports inside functions count, too."""
    known = {name: {one for one in found if one in MODULES} - {name} for name, found in OWN.items()}
    while free := [name for name, found in known.items() if not found]:
        known = {name: found - set(free) for name, found in known.items() if name not in free}
    assert known == {}


@pytest.mark.parametrize(
    "text",
    [
        "import bge_cocktail.core.errors",
        "import bge_cocktail.core.errors as e",
        "from bge_cocktail.core import errors",
        "from bge_cocktail.core.errors import DataError",
        "from ..core import errors",
        "from ..core.errors import DataError",
        "def f():\n    from bge_cocktail.core import errors as e",
        "try:\n    import os\nexcept ImportError:\n    from bge_cocktail.core.errors import *",
    ],
)
def test_every_form_of_import_is_seen(text: str) -> None:
    assert "bge_cocktail.core.errors" in imports_of(text, "bge_cocktail.cli.registries")


def test_trainings_build_on_the_engine() -> None:
    """Inside the room: what both trainings share knows neither, and an encoder's knows no classifier's."""
    order = {"engine": 0, "encoder": 1, "classifier": 2}

    def place(module: str) -> int | None:
        parts = module.split(".")
        return order.get(parts[2]) if parts[1:2] == ["training"] and len(parts) > 3 else None

    for module, imported in OWN.items():
        for other in imported:
            below, above = place(other), place(module)
            assert below is None or above is None or below <= above, f"{module} imports {other}"


def test_the_size_of_the_house() -> None:
    assert len(FILES) <= 190
    rooms = {room_of(name) for name in MODULES} - {"", "__main__"}
    assert len(rooms) <= 22
    assert rooms == set(FLOOR)
    assert len(FLOORS) == 10
    between = {(room_of(name), room_of(other)) for name, found in OWN.items() for other in found}
    assert len({(one, other) for one, other in between if one != other}) <= 120


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_what_they_offer_are_described(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 800
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


def test_no_word_of_our_own() -> None:
    """No type, function or file has a name that the field has a better one for (docs/words.md)."""
    old = {
        *("Kitchen", "Tasting", "ModelTasting", "Found", "Moved", "Change", "Details", "Material", "Judged", "Work"),
        *("Known", "Sought", "Seen", "Setting", "Settings"),
    }
    files = {
        *("tasting", "descent", "blackbox", "placing", "measuring", "opening", "origin", "streaming", "preparing"),
        *("comparing", "gathering", "material", "content", "census", "staging", "forming", "weighing", "choosing"),
        *("tune", "rows", "quick", "unfinished", "watching", "settings", "several", "frozen"),
    }
    for path in FILES:
        assert path.stem not in files, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.name not in old | {"drawn", "moved", "gather", "taste", "tune"}, f"{path}: {node.name}"


def test_the_library_does_not_speak_in_flags() -> None:
    """Messages and help outside the command line name options as Python does; commands to type are not messages."""
    commands = (
        "pip install",
        "hf download",
        "bge-cocktail merge",
        "bge-cocktail doctor",
        "bge-cocktail export",
        "--set",
        "--no-copy-tokenizer",
        "--random-seed",
        "--nproc-per-node",
    )
    for path in FILES:
        # which make flags of options, and lines to type in a shell
        if "cli" in path.parts or path.name in ("errors.py", "plug.py"):
            continue
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        whole = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        parts = {id(part) for node in whole for part in node.values}
        alone = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        for node in [*whole, *(node for node in alone if id(node) not in docstrings | parts)]:
            text = ast.unparse(node)
            if re.search(r"(?<!\w)--[a-z]", text):
                assert any(command in text for command in commands), f"{path}: {text[:200]}"


def test_what_is_imported_is_declared() -> None:
    """What the package imports stands in pyproject.toml, as a dependency or in an extra of users."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.match(r"[\w.-]+", one)[0].lower().replace("_", "-") for one in requirements}  # type: ignore[index]

    needed = names(project["dependencies"])
    parts = project["optional-dependencies"].items()
    extras = {name for key, part in parts if key != "test" for name in names(part)}
    # of extras that tests do without
    homes = {"umap": ["umap-learn"], "llama_cpp": ["llama-cpp-python"], **packages_distributions()}
    for module, found in IMPORTS.items():
        for name in {one.split(".")[0] for one in found} - set(sys.stdlib_module_names) - {NAME, "compression"}:
            packages = {one.lower().replace("_", "-") for one in homes.get(name, [name])}
            assert packages & (needed | extras), f"{module} imports {name}, which pyproject.toml doesn't name"


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


def test_help_needs_nothing_of_unix() -> None:
    """Importing and --help work where there is no fcntl, no os.preadv and no os.sysconf."""
    code = (
        # psutil asks the system that it runs on, which stays this one
        "import sys, os, psutil; sys.modules['fcntl'] = None; del os.preadv, os.sysconf\n"
        "import importlib, pkgutil, bge_cocktail\n"
        "from click.testing import CliRunner; from bge_cocktail.cli import main, COMMANDS\n"
        "for args in (['--help'], *([name, '--help'] for name in COMMANDS)):\n"
        "    result = CliRunner().invoke(main, args); assert result.exit_code == 0, result.output\n"
        "for found in pkgutil.walk_packages(bge_cocktail.__path__, 'bge_cocktail.'):\n"
        "    importlib.import_module(found.name) if not found.name.endswith('__main__') else None\n"
        "print('all')"
    )
    result = python(code)
    assert result.stdout.strip().endswith("all"), result.stdout + result.stderr


def test_help_is_quick() -> None:
    cpu_seconds("-m", "bge_cocktail", "--help", repeats=1)  # the first start compiles
    assert cpu_seconds("-m", "bge_cocktail", "--help", repeats=3) < 0.3 * slowness()


PUBLIC = [
    "CachedEncoder",
    "CocktailError",
    "Encoder",
    "Mined",
    "Record",
    "Score",
    "Synthesis",
    "build_report",
    "collect",
    "compare",
    "evaluate",
    "inspect",
    "load_classifier",
    "load_encoder",
    "merge",
    "merge_classifiers",
    "mine",
    "open_evaluation",
    "open_task",
    "predict",
    "prepare",
    "read_class_data",
    "read_records",
    "run",
    "run_classifier_evaluate",
    "run_evaluate",
    "run_indexes",
    "run_inspect",
    "run_mine",
    "synthesize",
    "train",
    "train_bagged",
    "train_classifier",
    "update",
    "write_records",
    "write_report",
]


def test_exported_names() -> None:
    assert sorted(bge_cocktail.__all__) == PUBLIC
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
