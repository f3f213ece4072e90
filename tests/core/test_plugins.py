"""Other packages bring a method, a weighting and a kind of task, each with options; a broken one ends nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_lines
from merge_helpers import tensors_in

from bge_cocktail.core.outputs import read_json

METHOD = '''
import numpy as np

def power_mean(stack, *, power: float = 1.0):
    """The mean of powers of the models' numbers."""
    for tile in stack.tiles():
        yield (np.abs(tile) ** power).mean(axis=0).astype(np.float32)
'''
WEIGHTING = '''
from bge_cocktail.merging.weights import WeightsResult

def first_most(objective, rows, *, lead: int):
    """The first model so many times the weight of each other."""
    total = lead + len(rows) - 1
    return WeightsResult([lead / total] + [1 / total] * (len(rows) - 1), note=f"{objective.names[0]} leads")
'''
TASK = '''
from bge_cocktail.evaluating.tasks.task import TaskKind

class WordCount(TaskKind):
    """Whether texts have as many words as is said."""

    def recognises(self, folder):
        return "words" in folder.first_row()

    def read(self, folder, split):
        return [(row["words"], row["count"]) for _, row in folder.split_rows(split)]

    def judge(self, encoder, task, options, *, off_by: int = 0):
        rows = task.data(options.split)
        encoder.encode_text([text for text, _ in rows])
        right = [abs(len(text.split()) - count) <= off_by for text, count in rows]
        return [task.score("right", sum(right) / len(right), (0.0, 1.0), len(right), main=True)]

word_count = WordCount()
'''


def install(folder: Path, package: str, modules: dict[str, str], points: dict[str, dict[str, str]]) -> None:
    """A package as pip leaves it: its modules, and beside them what says which entry points it has."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").touch()
    for name, code in modules.items():
        (folder / package / f"{name}.py").write_text(code)
    described = folder / f"{package}-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [
        line
        for group, entries in points.items()
        for line in (f"[bge_cocktail.{group}]", *(f"{name} = {place}" for name, place in entries.items()))
    ]
    (described / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package that works, and one that doesn't."""
    folder = tmp_path_factory.mktemp("site")
    install(
        folder,
        "othertools",
        {"method": METHOD, "weighting": WEIGHTING, "task": TASK},
        {
            "merge-methods": {"power-mean": "othertools.method:power_mean"},
            "weightings": {"first-most": "othertools.weighting:first_most"},
            "tasks": {"word-count": "othertools.task:word_count"},
        },
    )
    install(
        folder,
        "brokentools",
        {"broken": "import a_module_that_is_not_there", "old": "def judge(encoder, path): return []"},
        {
            "merge-methods": {"broken": "brokentools.broken:method", "linear": "othertools.method:power_mean"},
            "tasks": {"old": "brokentools.old:judge"},
        },
    )
    return folder


def run(site: Path, *args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "BGE_COCKTAIL_DEVICE": "cpu"}
    command = [sys.executable, "-m", "bge_cocktail", *map(str, args)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_a_method_and_a_weighting_with_options_of_their_own(
    site: Path, tiny: Path, nudged: list[Path], tmp_path: Path
) -> None:
    models, out = [tiny, nudged[0]], tmp_path / "out"
    run(site, "merge", *models, "-o", out, "--method", "power-mean", "--option", "power=2")
    first, second, merged = tensors_in(tiny), tensors_in(nudged[0]), tensors_in(out)
    for name, values in merged.items():
        if values.dtype == np.float32:
            expected = (first[name].astype(np.float64) ** 2 + second[name].astype(np.float64) ** 2) / 2
            np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-8)
    assert 'power = "2"' in (out / "recipe.toml").read_text()
    assert run(site, "merge", "--verify", "-o", out)

    result = run(site, "merge", *models, "-o", tmp_path / "led", "--weights", "first-most", "--option", "lead=3",
                 "--format", "json")  # fmt: skip
    assert '"weight": 0.75' in result.stdout
    assert f"{tiny} leads" in result.stdout


def test_a_kind_of_task_with_an_option_of_its_own(site: Path, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "words"
    folder.mkdir()
    rows: list[dict[str, object]] = [{"words": "a red dog", "count": 3}, {"words": "a dog", "count": 3}]
    write_lines(folder / "test.jsonl", [*rows, {"words": "dog", "count": 3}])
    for off_by, expected in ((None, 1 / 3), (1, 2 / 3)):
        out = tmp_path / f"out-{off_by}"
        option = () if off_by is None else ("--option", f"off-by={off_by}")
        run(site, "evaluate", tiny, "--target", folder, "-o", out, *option)
        (score,) = read_json(out / "scores.json")["models"][0]["scores"]
        assert (score["kind"], score["metric"]) == ("word-count", "right")
        assert score["value"] == pytest.approx(expected)


def test_what_is_wrong_with_an_option_is_said(site: Path, tiny: Path, nudged: list[Path], tmp_path: Path) -> None:
    merge = ("merge", tiny, nudged[0], "-o", tmp_path / "out", "--method", "power-mean", "--option")
    assert "no option 'powr'" in (said := run(site, *merge, "powr=2", code=2).stderr)
    assert "Did you mean 'power'" in said
    assert "option power: " in run(site, *merge, "power=two", code=2).stderr
    assert "expected NAME=VALUE" in run(site, *merge, "power", code=2).stderr
    lead = run(site, "merge", tiny, nudged[0], "-o", tmp_path / "out", "--weights", "first-most", code=2)
    assert "--option lead=VALUE" in lead.stderr
    assert not (tmp_path / "out").exists()


def test_a_broken_package_is_warned_of_in_a_line_and_ends_nothing(
    site: Path, tiny: Path, nudged: list[Path], tmp_path: Path
) -> None:
    result = run(site, "merge", tiny, nudged[0], "-o", tmp_path / "out")
    warned = [line for line in result.stderr.splitlines() if "brokentools" in line]
    assert len(warned) == 2
    assert "'broken' to the merge-methods (ModuleNotFoundError" in result.stderr
    assert "'linear'" in result.stderr  # a name that is taken
    assert "registered already" in result.stderr
    methods = json.loads(run(site, "list", "merge-methods", "--format", "json").stdout)
    assert methods["power-mean"] == "The mean of powers of the models' numbers."
    assert methods["linear"].startswith("Weighted mean")
    listed = run(site, "list", "tasks")
    assert "word-count" in listed.stdout
    assert "is no TaskKind" in listed.stderr


def test_traits_are_there_before_an_entry_was_asked_for() -> None:
    """In a process that has read nothing of the table yet: weights by gradient look at examples."""
    code = "from bge_cocktail.merging.weights import weightings; print(weightings.trait('gradient', 'data'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "examples" in result.stdout, result.stderr
