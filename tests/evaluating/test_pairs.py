"""Pairs of texts against scipy, scikit-learn and slow references."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from conftest import WORDS, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

from bge_cocktail.core.errors import DataError
from bge_cocktail.evaluating.evaluate import evaluate
from bge_cocktail.evaluating.tasks.pairs import _best_accuracy, _best_f1, average_precision, rank_correlations
from bge_cocktail.evaluating.tasks.task import open_task
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.options import EncodeOptions

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored") / "alike"
    generator = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for _ in range(60):
        same = int(generator.integers(0, 5))
        words = generator.choice(WORDS, 8, replace=False).tolist()
        rows.append(
            {"sentence1": " ".join(words[:4]), "sentence2": " ".join(words[:same] + words[4 : 8 - same]), "score": same}
        )
    write_lines(folder / "test.jsonl", rows)
    return folder


def test_sts_equals_scipy(scored: Path, tiny: Path) -> None:
    task = open_task(scored, "general")
    assert task.kind == "sts"
    encoder = CachedEncoder(tiny, EncodeOptions(cache=False))
    spearman, pearson = evaluate(encoder, [task])
    rows = [json.loads(line) for line in (scored / "test.jsonl").read_text().splitlines()]
    one, other = (encoder.encode_text([row[name] for row in rows]).astype(float) for name in ("sentence1", "sentence2"))
    cosine = (one * other).sum(axis=1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))
    truth = [row["score"] for row in rows]
    assert spearman.value == pytest.approx(spearmanr(cosine, truth).statistic, abs=1e-6)
    assert pearson.value == pytest.approx(pearsonr(cosine, truth).statistic, abs=1e-6)
    assert (spearman.main, pearson.main) == (True, False)
    for score in (spearman, pearson):
        assert score.interval[0] < score.value < score.interval[1]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=25))
def test_pairs_that_belong_together_equal_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    found = np.array([one for one, _ in rows], float)
    wanted = np.array([other for _, other in rows], float)
    if not 0 < wanted.sum() < len(wanted):
        return
    assert average_precision(found[None], wanted[None])[0] == pytest.approx(average_precision_score(wanted, found))
    thresholds = [*np.unique(found), np.inf]
    f1 = max(f1_score(wanted, found >= one, zero_division=0) for one in thresholds)
    assert _best_f1(found[None], wanted[None])[0] == pytest.approx(f1)
    accuracy = max(accuracy_score(wanted, found >= one) for one in thresholds)
    assert _best_accuracy(found[None], wanted[None])[0] == pytest.approx(accuracy)


def test_binary_scores_are_a_task_of_their_own(scored: Path, tiny: Path, cli: Cli, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (scored / "test.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "same/test.jsonl", [{**row, "score": int(row["score"] > 2)} for row in rows])
    where = ("evaluate", tiny, "--target", scored, "--general", tmp_path / "same", "-o", tmp_path / "out")
    scores = json.loads(cli(*where, "--format", "json").stdout)["models"][0]["scores"]
    assert [(one["kind"], one["metric"], one["main"]) for one in scores] == [
        ("sts", "Spearman", True),
        ("sts", "Pearson", False),
        ("pair-classification", "AP", True),
        ("pair-classification", "best F1", False),
        ("pair-classification", "best accuracy", False),
    ]


def test_a_probe_of_pairs(tiny: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    rows: list[dict[str, object]] = []
    for number in range(160):
        words = generator.choice(WORDS[10:20], 3, replace=False).tolist()
        same = number % 2 == 0
        rows.append(
            {
                "premise": f"{words[0]} {words[1]}",
                "hypothesis": f"{words[0]} {words[1]}" if same else f"{words[2]} red",
                "label": "same" if same else "other",
            }
        )
    write_lines(tmp_path / "nli/train.jsonl", rows[:120])
    write_lines(tmp_path / "nli/test.jsonl", rows[120:])
    task = open_task(tmp_path / "nli", "target")
    assert task.kind == "classification"
    accuracy = evaluate(CachedEncoder(tiny, EncodeOptions(cache=False)), [task])[0]
    assert accuracy.value > 0.9


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"sentence1": "a", "sentence2": "b", "score": "high"}], "test.jsonl:1: 'score' must be a number, got 'high'"),
        ([{"sentence1": "a", "sentence2": "b", "score": 1}] * 2, "all scores are the same"),
        ([{"sentence1": "a", "sentence2": "b", "score": 1}, {"sentence1": "a", "score": 2}], "test.jsonl:2"),
    ],
)
def test_broken_pairs(rows: list[dict[str, object]], words: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "broken/test.jsonl", rows)
    with pytest.raises(DataError, match=words):
        open_task(tmp_path / "broken", "target")


def test_a_graded_split_among_binary_ones_is_refused(scored: Path, tiny: Path, cli: Cli, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (scored / "test.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "same/test.jsonl", [{**row, "score": int(row["score"] > 2)} for row in rows])
    write_lines(tmp_path / "same/dev.jsonl", rows)
    where = ("evaluate", tiny, "--target", tmp_path / "same", "-o", tmp_path / "out", "--split", "dev")
    assert "among pairs of 0 and 1" in cli(*where, code=1).stderr


def test_the_interval_is_of_ranks_within_each_resample() -> None:
    generator = np.random.default_rng(0)
    found, wanted = generator.normal(size=(5, 20)), generator.integers(0, 4, (5, 20)).astype(float)
    for row, value in enumerate(rank_correlations(found, wanted)):
        assert value == pytest.approx(spearmanr(found[row], wanted[row]).statistic)
