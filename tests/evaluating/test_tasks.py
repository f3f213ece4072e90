"""Tasks against trec_eval's own code, scikit-learn and slow references."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
from click.testing import Result
from conftest import write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.data.beir import RetrievalData
from bge_cocktail.evaluating.evaluate import evaluate, evaluate_models, open_tasks
from bge_cocktail.evaluating.measures import measure_run
from bge_cocktail.evaluating.scores import bootstrap_interval
from bge_cocktail.evaluating.store import read_details, read_evaluation, write_evaluation
from bge_cocktail.evaluating.tasks.labelled import macro_f1_of_samples
from bge_cocktail.evaluating.tasks.retrieval import fused, judge, reranked, run_by_words, search_run, staged_run
from bge_cocktail.evaluating.tasks.task import open_task
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.options import EncodeOptions, EvaluateOptions
from bge_cocktail.search.exact import top_k


class Given:
    """Embeddings looked up by text."""

    def __init__(self, rows: dict[str, Sequence[float]]) -> None:
        self.rows = rows

    def encode_query(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray([self.rows[text] for text in texts], np.float32)

    encode_document = encode_text = encode_query


@st.composite
def judged_runs(draw: st.DrawFn) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    documents = [f"d{number}" for number in range(draw(st.integers(1, 30)))]
    run, qrels = {}, {}
    for number in range(draw(st.integers(1, 4))):
        # few distinct scores, so that ties are common
        run[f"q{number}"] = {d: draw(st.integers(0, 4)) / 4 for d in documents}
        qrels[f"q{number}"] = draw(
            st.dictionaries(st.sampled_from([*documents, "elsewhere"]), st.integers(-1, 3), min_size=1)
        )
    return run, qrels


THEIRS = {
    "nDCG@10": "ndcg_cut_10",
    "nDCG": "ndcg_cut_1000",  # its "ndcg" never ends where all grades are negative
    "MAP@{depth}": "map_cut_{depth}",
    "MAP": "map",
    "Recall@5": "recall_5",
    "P@5": "P_5",
    "P@15": "P_15",
    "MRR": "recip_rank",
    "hit@1": "success_1",
    "hit@5": "success_5",
    "R-precision": "Rprec",
}


@settings(deadline=None, max_examples=120)
@given(judged_runs(), st.integers(10, 20))
def test_equals_trec_eval_with_ties(
    data: tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]], depth: int
) -> None:
    run, qrels = data
    # trec_eval: by score, then by document id, both descending; cut at the depth
    ranked = {q: sorted(scores, key=lambda d: (scores[d], d), reverse=True)[:depth] for q, scores in run.items()}
    found = measure_run(ranked, qrels, [name.format(depth=depth) for name in THEIRS])
    cut = {q: {d: run[q][d] for d in documents} for q, documents in ranked.items()}
    names = {re.sub(r"_(\d+|\{depth\})$", r".\1", name).format(depth=depth) for name in THEIRS.values()}
    for query, expected in pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(cut).items():
        if not any(grade > 0 for grade in qrels[query].values()):
            assert all(query not in values for values in found.values())
            continue
        for mine, theirs in THEIRS.items():
            value = found[mine.format(depth=depth)][query]
            assert value == pytest.approx(expected[theirs.format(depth=depth)], abs=1e-6), mine
        # trec_eval has no cut for this one
        reciprocal = expected["recip_rank"]
        cut_at = measure_run(ranked, qrels, ["MRR@10"])["MRR@10"][query]
        assert cut_at == pytest.approx(reciprocal if reciprocal >= 0.1 else 0, abs=1e-6)


def test_ties_are_ordered_by_id_descending() -> None:
    encoder = Given({"q": [1, 0], **{f"t{n}": [0.5, 0.1 * n] for n in range(4)}, "best": [1, 0]})
    corpus = {"a": "t0", "c": "t1", "b": "t2", "z": "best", "y": "t3"}
    run = search_run(encoder, RetrievalData(corpus, {"q": "q"}, {"q": {"a": 1}}), depth=4)
    assert list(run["q"]) == ["z", "y", "c", "b"]


def test_a_query_that_is_a_document_does_not_find_itself() -> None:
    encoder = Given({"one": [1, 0], "two": [0.9, 0.1], "ask": [1, 0.1]})
    corpus = {"1": "one", "2": "two"}
    assert search_run(encoder, RetrievalData(corpus, {"1": "one"}, {"1": {"2": 1}}), depth=10)["1"].keys() == {"2"}
    titled = Given({"A title one": [1, 0], "two": [0.9, 0.1], "One": [1, 0]})
    judged = RetrievalData({"1": "A title one", "2": "two"}, {"1": "One"}, {"1": {"2": 1}})
    assert search_run(titled, judged, depth=10)["1"].keys() == {"2"}
    # ids that are only numbered alike, or a judgement that says so, are something else
    assert search_run(encoder, RetrievalData(corpus, {"1": "ask"}, {"1": {"1": 1}}), depth=10)["1"].keys() == {"1", "2"}
    assert search_run(encoder, RetrievalData(corpus, {"1": "one"}, {"1": {"1": 1}}), depth=10)["1"].keys() == {"1", "2"}


def test_judgements_without_a_relevant_document() -> None:
    with pytest.raises(DataError, match="no query of this split has a relevant document"):
        judge(Given({"q": [1, 0], "t": [1, 0]}), RetrievalData({"d": "t"}, {"q": "q"}, {"q": {"d": 0}}))


def test_queries_missing_from_a_run_count_zero() -> None:
    names = ["nDCG@10", "MRR@10", "MAP@10", "Recall@10", "P@3", "hit@1", "R-precision"]
    assert measure_run({}, {"q": {"d": 1}}, names) == {name: {"q": 0} for name in names}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nDGC@10", "Did you mean 'nDCG'"),
        ("P", "P@10"),
        ("hit@0", "hit@10"),
        ("R-precision@5", "leave out @5"),
        ("nDCG@x", "no measure 'nDCG@x'"),
    ],
)
def test_measures_that_are_refused(cli: Callable[..., Result], name: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        measure_run({}, {}, [name])
    assert "R-precision" in cli("list", "measures").stdout


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 10**6))
def test_top_k_equals_sorting(queries: int, k: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    one, two = (generator.integers(-2, 3, (rows, 3)).astype(np.float32) for rows in (queries, 50))
    similarities, rows = top_k(one, two, k)
    exact = one @ two.T
    for line in range(queries):
        expected = np.sort(exact[line])[::-1][:k]
        assert np.array_equal(similarities[line], expected)
        assert np.array_equal(exact[line][rows[line]], expected)
        assert len(set(rows[line].tolist())) == len(expected)


@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 10**6))
def test_macro_f1_equals_scikit_learn(texts: int, classes: int, seed: int) -> None:
    pairs = np.random.default_rng(seed).integers(0, classes, (texts, 2))
    found = macro_f1_of_samples(pairs[None].astype(float), classes)[0]
    assert found == pytest.approx(f1_score(pairs[:, 0], pairs[:, 1], average="macro", zero_division=0))


def test_bootstrap_interval_is_about_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(2, 3, 400)
    low, high = bootstrap_interval(values, seed=1)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.05)
    assert high == pytest.approx(values.mean() + half, abs=0.05)
    assert (low, high) == bootstrap_interval(values, seed=1)
    narrow = bootstrap_interval(values, seed=1, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_retrieval_and_classification_end_to_end(tiny: Path, beir: Path, labelled: Path) -> None:
    scores = evaluate(CachedEncoder(tiny), [open_task(beir, "target"), open_task(labelled, "general")])
    main = {score.task: score for score in scores if score.main}
    assert main["animals"].metric == "nDCG@10"
    assert main["animals"].count == 25
    assert main["animals"].value == pytest.approx(np.mean(list(main["animals"].per_query.values())))
    assert main["animals"].interval[0] <= main["animals"].value <= main["animals"].interval[1]
    # even a random encoder tells animals from vehicles by their words
    assert main["kinds"].value > 0.8
    assert main["kinds"].value == pytest.approx(np.mean(list(main["kinds"].per_query.values())))
    assert [score.metric for score in scores] == [
        "nDCG@10",
        "MRR@10",
        "MAP@100",
        "Recall@10",
        "Recall@100",
        "accuracy",
        "macro-F1",
    ]


def test_any_measure_and_runs_that_trec_eval_reads(
    cli: Callable[..., Result], tiny: Path, beir: Path, tmp_path: Path
) -> None:
    from bge_cocktail.data.beir import read_beir

    names = "Recall@1,Recall@20,R-precision,nDCG@3"
    judged = ("evaluate", tiny, "--target", beir, "-o", tmp_path / "out", "--metrics", names, "--save-runs")
    found = json.loads(cli(*judged, "--format", "json").stdout)["models"][0]["scores"]
    assert [one["metric"] for one in found] == names.split(",")
    assert [one["main"] for one in found] == [True, False, False, False]
    with (tmp_path / "out/runs/tiny/animals.trec").open() as file:
        run = pytrec_eval.parse_run(file)
    theirs = pytrec_eval.RelevanceEvaluator(read_beir(beir).qrels, {"recall.1,20", "Rprec", "ndcg_cut.3"}).evaluate(run)
    for one, name in zip(found, ("recall_1", "recall_20", "Rprec", "ndcg_cut_3"), strict=True):
        assert one["value"] == pytest.approx(np.mean([values[name] for values in theirs.values()]), abs=1e-6)
    result = cli("evaluate", tiny, "--target", beir, "-o", tmp_path / "no", "--metrics", "Recall@200", code=2)
    assert "Recall@200 looks further than the depth=100" in result.stderr


def test_evaluation_round_trip(tiny: Path, beir: Path, labelled: Path, tmp_path: Path) -> None:
    task_list = open_tasks([beir], [labelled])
    results = write_evaluation(
        tmp_path / "out",
        lambda: evaluate_models({"tiny": tiny}, task_list, EncodeOptions(), EvaluateOptions()),
        {"evaluate": EvaluateOptions().model_dump(mode="json")},
        {},
        task_list,
    )
    assert read_evaluation(tmp_path / "out") == results
    details = read_details(tmp_path / "out")
    main = {score.task: score for score in results[0].main()}
    assert details.answers["tiny", "animals"] == main["animals"].answers
    for query, answer in details.answers["tiny", "animals"].items():
        assert details.texts["animals"]["asked"][query]["wanted"].keys() == answer["ranks"].keys()
        assert answer["found"].keys() <= details.texts["animals"]["documents"].keys()
        (rank,) = answer["ranks"].values()
        assert main["animals"].per_query[query] == pytest.approx(1 / np.log2(rank + 1) if rank <= 10 else 0)
    for line, label in details.answers["tiny", "kinds"].items():
        right = details.texts["kinds"]["asked"][line]["wanted"] == label
        assert main["kinds"].per_query[line] == float(right)
    texts, groups, points = details.points["tiny", "kinds"]
    assert set(groups) == {"animal", "vehicle"}
    assert np.allclose(points, CachedEncoder(tiny).encode_text(texts), atol=1e-3)
    saved = json.loads((tmp_path / "out/scores.json").read_text())["models"][0]
    assert saved["target"] == pytest.approx(results[0].mean("target"))


def test_what_is_no_task(tmp_path: Path, labelled: Path) -> None:
    with pytest.raises(DataError, match="is no task: expected a BEIR folder"):
        open_task(tmp_path, "target")
    with pytest.raises(UsageError, match="two tasks are called 'kinds'"):
        open_tasks([labelled], [labelled])
    with pytest.raises(UsageError, match="nothing to evaluate on"):
        open_tasks([], [])


def test_unknown_label_in_test(tmp_path: Path, tiny: Path) -> None:
    rows = [{"text": f"dog {n}", "label": "animal" if n % 2 else "vehicle"} for n in range(6)]
    write_lines(tmp_path / "train.jsonl", rows)
    write_lines(tmp_path / "test.jsonl", [{"text": "cat", "label": "animals"}])
    with pytest.raises(DataError, match="test.jsonl: unknown label 'animals' of 'cat'. Did you mean 'animal'"):
        evaluate(CachedEncoder(tiny), [open_task(tmp_path, "general")])
    write_lines(tmp_path / "train.jsonl", rows[1::2])
    with pytest.raises(DataError, match="holds one label only"):
        evaluate(CachedEncoder(tiny), [open_task(tmp_path, "general")])


def test_reciprocal_rank_fusion_by_hand() -> None:
    one, other = {"q": {"a": 0.9, "b": 0.8, "c": 0.7}}, {"q": {"c": 5.0, "d": 4.0}}
    found = fused([one, other], depth=3)["q"]
    assert list(found) == ["c", "a", "d"]
    assert found["c"] == pytest.approx(1 / 63 + 1 / 61)
    # b and d stand on second ranks alike; the tie goes to the id that comes later
    assert found["d"] == pytest.approx(1 / 62)
    assert list(fused([one, {"q": {}}], depth=3)["q"]) == ["a", "b", "c"]


def test_hybrid_joins_words_and_embeddings(tiny: Path, beir: Path) -> None:
    from bge_cocktail.data.beir import read_beir

    judged, encoder = read_beir(beir), CachedEncoder(tiny)
    run = staged_run(encoder, judged, EvaluateOptions(hybrid=True))
    words = run_by_words(judged, 101)
    dense = search_run(encoder, judged, 100)
    for query, found in run.items():
        places = {name: list(one.get(query, {})) for name, one in (("words", words), ("dense", dense))}
        for document, score in found.items():
            expected = sum(1 / (61 + place.index(document)) for place in places.values() if document in place)
            assert score == pytest.approx(expected, rel=1e-6)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_a_reranker_orders_the_first_anew() -> None:
    judged = RetrievalData({name: f"text {name}" for name in "abcd"}, {"q": "ask"}, {"q": {"d": 1}})
    run = {"q": {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}}
    seen: list[tuple[str, str]] = []

    def reranker(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        seen.extend(pairs)
        return np.array([-1.0, 3.0, 2.0])

    found = reranked(run, judged, reranker, 3)["q"]
    assert list(found) == ["b", "c", "a", "d"]
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert seen == [("ask", "text a"), ("ask", "text b"), ("ask", "text c")]
    assert reranked({"q": {}}, judged, reranker, 3) == {"q": {}}


def test_a_reranker_from_the_command_line(
    cli: Callable[..., Result], tiny: Path, beir: Path, reranker: Path, tmp_path: Path
) -> None:
    where = ("evaluate", tiny, "--target", beir, "-o")
    cli(*where, tmp_path / "out", "--reranker", reranker, "--rerank-depth", 5, "--save-runs", "--device", "cpu")
    cli(*where, tmp_path / "plain", "--save-runs")
    inputs = json.loads((tmp_path / "out/run.json").read_text())["inputs"]
    assert f"reranker {reranker}" in inputs
    runs = []
    for name in ("out", "plain"):
        with (tmp_path / name / "runs/tiny/animals.trec").open() as file:
            runs.append(pytrec_eval.parse_run(file))
    for query, found in runs[0].items():
        first, plain = (sorted(one, key=one.get, reverse=True) for one in (found, runs[1][query]))  # type: ignore[arg-type]
        assert set(first[:5]) == set(plain[:5])
    assert "is no reranker" in cli(*where, tmp_path / "no", "--reranker", tiny, code=1).stderr


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 3))
def test_ties_are_cut_by_row_however_many(seed: int, k: int, values: int) -> None:
    from bge_cocktail.search.exact import top_k_and_ties

    generator = np.random.default_rng(seed)
    documents = generator.integers(0, values + 1, (int(generator.integers(1, 200)), 2)).astype(np.float32)
    queries = generator.integers(0, 3, (4, 2)).astype(np.float32)
    k = min(k, len(documents))
    similarities, rows = top_k_and_ties(queries, documents, k)
    exact = queries @ documents.T
    for found, own, line in zip(rows, similarities, exact, strict=True):
        order = np.lexsort((np.arange(len(line)), -line))[:k]
        assert found.tolist() == order.tolist()
        assert own.tolist() == line[order].tolist()


def test_means_have_the_intervals_of_a_plain_bootstrap() -> None:
    from bge_cocktail.evaluating.scores import bootstrap_interval, mean_intervals

    generator = np.random.default_rng(5)
    values = generator.random((300, 3)) * [1, 0.2, 3]
    for column, interval in zip(values.T, mean_intervals(values, resamples=4000), strict=True):
        rows = np.random.default_rng(9).integers(0, 300, (4000, 300))
        plain = np.quantile(column[rows].mean(axis=1), [0.025, 0.975])
        assert interval == pytest.approx(plain, abs=0.1 * column.std() / np.sqrt(300) + 1e-9)
        assert bootstrap_interval(column, resamples=4000) == pytest.approx(interval, rel=1e-12)


def test_a_split_is_the_file_of_its_name(tmp_path: Path) -> None:
    """Whatever stands beside it; validation is dev by another name, and then chooses nothing."""
    from bge_cocktail.data.labelled import DataFolder

    train = [{"text": "red", "label": "a"}, {"text": "blue", "label": "b"}]
    write_lines(tmp_path / "train.jsonl", train)
    write_lines(tmp_path / "validation.jsonl", [{"text": "red dog", "label": "a"}])
    data = open_task(tmp_path, "target").data("validation")
    assert (data.dev, data.test.texts) == (None, ["red dog"])
    for year in ("2019", "2020"):
        write_lines(tmp_path / f"test_{year}.jsonl", [{"text": year, "label": "a"}])
    data = open_task(tmp_path, "target").data("test_2019")
    assert data.test.texts == ["2019"]
    assert data.dev.texts == ["red dog"]
    write_lines(
        tmp_path / "test.jsonl", [{"text": "green", "label": "b", "weight": "heavy", "context": "x", "score": 1}]
    )
    (tmp_path / "test.csv").write_text("text,label\nother,a\n")
    assert open_task(tmp_path, "target").data("test").test.texts == ["green"]
    assert DataFolder(tmp_path).first_row()["text"] == "green"


def test_labelled_texts_may_be_a_table(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\nred,1\nblue,0\n")
    (tmp_path / "test.tsv").write_text("text\tlabel\nred dog\t1\n")
    data = open_task(tmp_path, "target").data("test")
    assert (data.train.names, data.test.class_names()) == (["0", "1"], ["1"])


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "test.jsonl", [{"text": "red", "label": "a"}])
    with pytest.raises(DataError, match="holds labelled texts, no records; make records from them"):
        open_task(f"retrieval:{tmp_path}", "target").data("test")


def test_a_broken_split_stays_broken(tmp_path: Path) -> None:
    lines = ['{"text": "a", "label": "x"}', '{"text": "b", "label": "y"}', "{", '{"text": "c", "label": "x"}']
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:2]) + "\n")
    (tmp_path / "test.jsonl").write_text("\n".join(lines) + "\n")
    task = open_task(tmp_path, "target")
    for _ in range(2):
        with pytest.raises(DataError, match="test.jsonl:3"):
            task.data("test")


def test_a_kind_that_cannot_tell_stops_no_other(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from bge_cocktail.evaluating.tasks.task import TaskKind, tasks

    class Titles(TaskKind):
        order = 1

        def recognises(self, folder: Any) -> bool:
            return bool(folder.first_row()["title"])

        def read(self, folder: Any, split: str) -> Any:
            return None

        def judge(self, encoder: Any, task: Any, options: Any) -> list[Any]:
            return []

    monkeypatch.setattr(tasks, "_entries", {**tasks._all(), "titles": Titles()})
    assert open_task(labelled, "target").kind == "classification"
    assert "'titles' can't tell" in caplog.text


def test_a_task_that_was_opened_takes_the_role_it_is_given(beir: Path) -> None:
    from bge_cocktail.evaluating.evaluate import open_tasks

    (task,) = open_tasks([open_task(beir, "general")], [])
    assert task.role == "target"
