"""Clustering, reranking and ways to probe: against scikit-learn, by hand, and against mteb's own code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from conftest import WORDS, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import v_measure_score

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.evaluating.evaluate import evaluate
from bge_cocktail.evaluating.tasks.labelled import knn, logistic, v_measure
from bge_cocktail.evaluating.tasks.task import open_task
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.options import EvaluateOptions


class Words:
    """Embeds a text as the word of it that is known; exact and quick."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        found = np.array([[float(word in text.split()) for word in self.words] for text in texts], np.float32)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)

    def encode_query(self, texts: Sequence[str], prompt: str | None = None) -> np.ndarray:
        return self.encode_text(texts)

    encode_document = encode_text


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_v_measure_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    both = np.array(pairs)
    assert v_measure(both[None], 4)[0] == pytest.approx(v_measure_score(both[:, 0], both[:, 1]), abs=1e-9)


def test_clusters_that_are_there_are_found(tmp_path: Path) -> None:
    words = ["apple", "dog", "train"]
    rows = [{"text": f"{words[n % 3]} {n}", "label": "abc"[n % 3]} for n in range(60)]
    write_lines(tmp_path / "test.jsonl", rows)
    task = open_task(f"clustering:{tmp_path}", "general")
    assert (task.kind, task.name) == ("clustering", f"{tmp_path.name} (clustering)")
    (score,) = evaluate(Words(words), [task])
    assert score.metric == "V-measure"
    assert score.value > 0.8
    low, high = score.interval or (1, 0)
    assert low <= score.value <= high
    blind, *_ = evaluate(Words(["none"]), [task])
    assert blind.value < 0.3


def test_what_is_no_clustering(tmp_path: Path) -> None:
    write_lines(tmp_path / "test.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}])
    with pytest.raises(DataError, match=r"one label only \(x\); clustering needs two"):
        open_task(f"clustering:{tmp_path}", "general").data("test")
    with pytest.raises(UsageError, match=r"no kind of task is called 'clusterin'.*Did you mean 'clustering'"):
        open_task(f"clusterin:{tmp_path}", "general")


def test_reranking_by_hand(tmp_path: Path) -> None:
    rows = [
        {"query": "apple dog", "positive": ["apple dog"], "negative": ["apple", "train"]},
        {"query": "train", "positive": ["apple", "train"], "negative": ["train"]},
    ]
    write_lines(tmp_path / "test.jsonl", rows)
    task = open_task(tmp_path, "target")
    assert task.kind == "reranking"
    found = {one.metric: one for one in evaluate(Words(["apple", "dog", "train"]), [task])}
    # second query: p2 and n1 have the same similarity, and the higher id goes first
    assert found["MAP"].per_query == {"test:1": 1.0, "test:2": pytest.approx((1 + 2 / 3) / 2)}
    assert found["MAP"].answers["test:2"]["ranks"] == {"p2": 1, "p1": 3}
    assert found["MAP"].main


@pytest.mark.parametrize("bad", [{"positive": []}, {"negative": [" "]}, {"positive": 3}, {"query": ""}])
def test_candidates_that_are_broken(tmp_path: Path, bad: dict[str, object]) -> None:
    good = {"query": "a", "positive": ["b"], "negative": ["c"]}
    write_lines(tmp_path / "test.jsonl", [good, {**good, **bad}])
    with pytest.raises(DataError, match=rf"test.jsonl:2: .*{next(iter(bad))}"):
        open_task(tmp_path, "target").data("test")


def noisy(folder: Path, *, dev: bool = True) -> Path:
    """Labelled texts whose words tell the label in most, and a dev split."""
    generator = np.random.default_rng(1)
    for split, count in (("train", 120), ("dev", 60), ("test", 60)):
        if split == "dev" and not dev:
            continue
        rows = []
        for _ in range(count):
            label = int(generator.integers(3))
            known = WORDS[5 * label : 5 * label + 5] if generator.random() < 0.8 else WORDS[:15]
            rows.append({"text": f"{generator.choice(known)} {generator.choice(WORDS[20:30])}", "label": "xyz"[label]})
        write_lines(folder / f"{split}.jsonl", rows)
    return folder


def test_c_and_k_are_chosen_on_dev(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(0)
    rows = generator.standard_normal((300, 8)).astype(np.float32)
    labels = (rows[:, 0] + generator.standard_normal(300) > 0).astype(np.int64)
    parts = [(rows[at : at + 100], labels[at : at + 100]) for at in (0, 100, 200)]
    predicted, strength = logistic(parts[0], parts[1], parts[2][0])
    right = {
        c: (LogisticRegression(C=c, max_iter=2000).fit(*parts[0]).predict(parts[1][0]) == parts[1][1]).mean()
        for c in (0.01, 0.1, 1.0, 10.0, 100.0)
    }
    assert right[strength] == max(right.values())
    fitted = LogisticRegression(C=strength, max_iter=2000).fit(*parts[0])
    assert (predicted == fitted.predict(parts[2][0])).all()
    _, count = knn(parts[0], parts[1], parts[2][0])
    assert count in (1, 3, 5, 10, 20, 50)
    assert knn(parts[0], None, parts[2][0])[1] == 10


@pytest.mark.parametrize("probe", ["full", "few", "knn"])
def test_each_probe_learns(tmp_path: Path, probe: str) -> None:
    task = open_task(noisy(tmp_path), "general")
    accuracy, f1 = evaluate(Words(WORDS), [task], EvaluateOptions(probe=probe))
    assert accuracy.value > (0.5 if probe == "few" else 0.7)
    assert f1.value == pytest.approx(accuracy.value, abs=0.1)
    assert accuracy.value == pytest.approx(np.mean(list(accuracy.per_query.values())))


def test_few_texts_clusters_and_candidates_are_judged_as_by_mteb(tiny: Path, tmp_path: Path) -> None:
    from bge_cocktail.evaluating.mteb import as_mteb_task, run_mteb

    labels = noisy(tmp_path / "labels")
    candidates = tmp_path / "candidates"
    generator = np.random.default_rng(2)
    write_lines(
        candidates / "test.jsonl",
        [
            {
                "query": " ".join(generator.choice(WORDS, 3)),
                "positive": [" ".join(generator.choice(WORDS, 4)) for _ in range(1 + n % 3)],
                "negative": [" ".join(generator.choice(WORDS, 4)) for _ in range(6)],
            }
            for n in range(20)
        ],
    )
    encoder = CachedEncoder(tiny)
    tasks = [open_task(labels, "general"), open_task(candidates, "general")]
    ours = evaluate(encoder, tasks, EvaluateOptions(probe="few"))
    theirs = run_mteb("tiny", encoder, [as_mteb_task(task) for task in tasks], "general")
    main = [score.value for score in ours if score.main]
    assert main == pytest.approx([score.value for score in theirs], abs=2e-4)
    # clusters start elsewhere: near, and no more
    task = open_task(f"clustering:{labels}", "general")
    (mine,) = evaluate(encoder, [task])
    (other,) = run_mteb("tiny", encoder, [as_mteb_task(task)], "general")
    assert mine.value == pytest.approx(other.value, abs=0.1)


def test_the_command_takes_a_kind(cli: Callable[..., Result], tiny: Path, tmp_path: Path) -> None:
    folder = noisy(tmp_path / "words")
    given = ("evaluate", tiny, "--target", f"clustering:{folder}", "--general", folder, "-o", tmp_path / "out")
    result = cli(*given, "--probe", "knn")
    assert "words (clustering) (target) V-measure" in result.stdout
    assert "words accuracy" in result.stdout
