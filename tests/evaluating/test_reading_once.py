"""Data are opened once for hashing and once for reading, however many models, trials and evaluations look at them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import Result

Cli = Callable[..., Result]
_watched: list[tuple[Path, Counter[str]]] = []


def _count(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _watched and isinstance(arguments[0], str | bytes | Path):
        path = Path(str(arguments[0]))
        for folder, counts in _watched:
            if folder in path.parents and path.is_file():
                counts[path.relative_to(folder).as_posix()] += 1


sys.addaudithook(_count)  # there is no taking it away again: it looks only while something is watched


@contextmanager
def opened(folder: Path) -> Iterator[Counter[str]]:
    """Count how often each file below a folder is opened."""
    counts: Counter[str] = Counter()
    _watched.append((folder, counts))
    try:
        yield counts
    finally:
        _watched.pop()


@pytest.fixture
def data(beir: Path, labelled: Path, tmp_path: Path) -> Path:
    """A BEIR folder and one of labelled texts, copied, so that nothing else looks at them."""
    import shutil

    shutil.copytree(beir, tmp_path / "data/beir")
    shutil.copytree(labelled, tmp_path / "data/labelled")
    return tmp_path / "data"


def test_evaluate_of_two_models(cli: Cli, tiny: Path, nudged: list[Path], data: Path, tmp_path: Path) -> None:
    with opened(data) as counts:
        cli(
            "evaluate", tiny, nudged[0], "--target", data / "beir", "--general", data / "labelled", "-o", tmp_path / "o"
        )
    read = {
        "beir/corpus.jsonl",
        "beir/queries.jsonl",
        "beir/qrels/test.tsv",
        "labelled/train.jsonl",
        "labelled/test.jsonl",
    }
    assert {name for name, count in counts.items() if count == 2} >= read
    assert max(counts.values()) == 2


def test_a_search_of_eight_trials(cli: Cli, tiny: Path, nudged: list[Path], data: Path, tmp_path: Path) -> None:
    with opened(data) as counts:
        result = cli("merge", tiny, nudged[0], "-o", tmp_path / "o", "--weights", "search", "--trials", 8, "--target",
                     data / "beir", "--split", "test", "--format", "json")  # fmt: skip
    assert result.stdout.count('"target"') == 8
    assert counts["beir/corpus.jsonl"] == counts["beir/queries.jsonl"] == counts["beir/qrels/test.tsv"] == 2
    assert max(counts.values()) == 2


def test_a_report_over_six_evaluations(cli: Cli, tiny: Path, nudged: list[Path], beir: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for number in range(6):
        model = f"m{number}={[tiny, *nudged][number % 3]}"
        cli("evaluate", model, "--target", beir, "-o", runs / f"{number}")
    with opened(runs) as counts:
        cli("report", *[runs / f"{number}" for number in range(6)], "-o", tmp_path / "report.html")
    once = [f"{number}/{name}" for number in range(6) for name in ("scores.json", "per_query.jsonl", "answers.jsonl")]
    assert {name: counts[name] for name in once} == dict.fromkeys(once, 1)
    assert max(counts.values()) <= 2  # run.json also tells which folders hold a run


def test_training_that_watches_a_general_task(cli: Cli, tiny: Path, beir: Path, data: Path, tmp_path: Path) -> None:
    with opened(data / "labelled") as counts:
        cli("train", beir, "-m", tiny, "-o", tmp_path / "o", "--general", data / "labelled", "--batch-size", 8,
            "--epochs", 2, "--general-split", "test")  # fmt: skip
    assert counts["train.jsonl"] == counts["test.jsonl"] == 2
