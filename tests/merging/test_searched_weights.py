"""Weights that are searched, from the command line: scores kept, picture drawn, nothing embedded twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from conftest import leftovers, perturb, write_lines

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> list[Path]:
    folder = tmp_path_factory.mktemp("pair")
    return [perturb(tiny, folder / "tuned", 4, scale=0.02), tiny]


@pytest.fixture
def with_dev(labelled: Path, tmp_path: Path) -> Path:
    """The labelled texts with a dev split of their own."""
    import shutil

    folder = shutil.copytree(labelled, tmp_path / "kinds")
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:150]))
    (folder / "dev.jsonl").write_text("".join(lines[150:]))
    return folder


def test_pareto(cli: Cli, pair: list[Path], beir: Path, with_dev: Path, tmp_path: Path) -> None:
    tasks = ["--target", beir, "--general", with_dev]
    options = ["--weights", "pareto", "--shares", "0,0.25,0.5,0.75,1", "--epsilon", "0.02"]
    result = cli("merge", *pair, *options, *tasks, "-o", tmp_path / "out")
    assert "chosen" in result.stdout
    assert "best target score of" in result.stdout
    described = json.loads((tmp_path / "out/run.json").read_text())
    trials = described["trials"]
    assert sorted(trial["weights"][0] for trial in trials) == [0, 0.25, 0.5, 0.75, 1]
    base = next(trial for trial in trials if trial["weights"] == [0, 1])
    kept = [trial for trial in trials if trial["general"] >= base["general"] - 0.02]
    chosen = [one["weight"] for one in described["models"]]
    best = max(kept, key=lambda trial: (trial["target"], trial["general"]))
    assert chosen == best["weights"]
    assert (tmp_path / "out/front.png").read_bytes()[:4] == b"\x89PNG"
    assert "verify" not in result.output
    assert "identical: True" in cli("merge", "--verify", "-o", tmp_path / "out").stdout
    assert leftovers(tmp_path) == []
    # the score of the base is what evaluate gives it on the same split
    judged = cli("evaluate", f"base={pair[1]}", *tasks, "--split", "dev", "--format", "json", "-o", tmp_path / "scores")
    scores = json.loads(judged.stdout)["models"][0]
    assert scores["target"] == pytest.approx(base["target"], abs=1e-9)
    assert scores["general"] == pytest.approx(base["general"], abs=1e-9)


def test_search_and_greedy_by_a_task(cli: Cli, pair: list[Path], beir: Path, tmp_path: Path) -> None:
    for weights, more in (("search", ["--trials", "5"]), ("greedy", [])):
        result = cli("merge", *pair, "--weights", weights, *more, "--target", beir, "-o", tmp_path / weights)
        assert "target" in result.stdout
        trials = json.loads((tmp_path / weights / "run.json").read_text())["trials"]
        alone = [trial["target"] for trial in trials if 1.0 in trial["weights"]]
        assert max(trial["target"] for trial in trials) >= max(alone)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weights", "pareto", "--target", "{beir}"], "--general"),
        (["--weights", "pareto", "--general", "{beir}"], "--target"),
        (["--weights", "greedy"], "--examples"),
        (["--weights", "search", "--target", "{beir}", "--split", "nothing"], "nothing"),
        (["--weights", "cocktail", "--target", "{beir}"], "such as --weights search"),
        (["--method", "fisher"], "--examples"),
        (["--weights", "gradient", "--method", "slerp", "--examples", "{examples}"], "--method linear"),
    ],
)
def test_data_that_is_missing_or_does_nothing(
    cli: Cli, pair: list[Path], beir: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    examples = write_lines(tmp_path / "examples.jsonl", [{"query": "q", "pos": ["p"], "neg": ["n"]}])
    flags = [flag.format(beir=beir, examples=examples) for flag in flags]
    result = cli("merge", *pair, *flags, "-o", tmp_path / "out", code=None)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_examples_are_embedded_once(cli: Cli, pair: list[Path], tmp_path: Path, own_cache: Path) -> None:
    examples = write_lines(
        tmp_path / "examples.jsonl",
        [{"query": f"which dog is {word}", "pos": [f"the {word} dog"], "neg": ["a cat"]} for word in ("red", "blue")],
    )
    for name in ("one", "two"):
        flags = ["--weights", "cocktail", "--examples", examples, "--format", "json"]
        cli("merge", *pair, *flags, "-o", tmp_path / name)
    kept = {path: path.stat().st_mtime_ns for path in own_cache.rglob("*") if path.is_file()}
    assert kept
    cli("merge", *pair, *flags, "-o", tmp_path / "three")
    assert {path: path.stat().st_mtime_ns for path in own_cache.rglob("*") if path.is_file()} == kept
