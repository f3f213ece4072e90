"""Comparisons of models: tests against scipy and by hand, the words, the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from conftest import WORDS, perturb, write_alike, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_cocktail.core.errors import DataError
from bge_cocktail.evaluating.compare import (
    Comparison,
    compare_models,
    holm,
    in_words,
    permutation_test,
    resampled_score,
)
from bge_cocktail.evaluating.scores import ModelScores, Score, bootstrap_interval
from bge_cocktail.evaluating.store import EvaluationDetails

Cli = Callable[..., Result]


def scored(model: str, role: str = "target", **tasks: list[float]) -> ModelScores:
    scores = [
        Score(
            task=name,
            kind="retrieval",
            role=role,  # type: ignore[arg-type]
            metric="nDCG@10",
            value=float(np.mean(values)),
            interval=(0, 1),
            count=len(values),
            main=True,
            per_query={f"q{number}": value for number, value in enumerate(values)},
        )
        for name, values in tasks.items()
    ]
    return ModelScores(model, model, scores)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=9))
def test_few_differences_are_tested_exactly(values: list[int]) -> None:
    differences = np.array(values, float) / 7
    sums = [abs(sum(sign * one for sign, one in zip(signs, values, strict=True)))
            for signs in product((-1, 1), repeat=len(values))]  # fmt: skip
    expected = np.mean([one >= abs(sum(values)) for one in sums])
    assert permutation_test(differences) == pytest.approx(expected)


def test_many_differences_are_drawn() -> None:
    from scipy.stats import ttest_1samp

    generator = np.random.default_rng(0)
    for shift in (0.0, 0.05, 0.1):
        differences = generator.normal(shift, 1, 600)
        p = permutation_test(differences)
        assert p == pytest.approx(ttest_1samp(differences, 0).pvalue, abs=0.02)
        assert p == permutation_test(differences)
    assert permutation_test(np.ones(200)) == pytest.approx(1 / 10_001, rel=1.01)
    assert permutation_test(np.zeros(5)) == 1


def test_holm_by_hand() -> None:
    # Holm 1979: the least p times the number of tests, the next times one fewer, never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_false_alarms_are_as_rare_as_said() -> None:
    generator = np.random.default_rng(1)
    alarms = 0
    for _ in range(60):
        tasks = {f"t{number}": generator.normal(0.5, 0.2, 40).tolist() for number in range(5)}
        other = {name: (np.array(values) + generator.normal(0, 0.1, 40)).tolist() for name, values in tasks.items()}
        changes = compare_models(scored("a", **tasks), scored("b", **other), resamples=500)
        alarms += any(change.verdict != "no measurable change" for change in changes)
    assert alarms <= 8  # 3 are expected; more than 8 come once in 300


def test_verdicts_and_words() -> None:
    generator = np.random.default_rng(2)
    before = generator.uniform(0.3, 0.6, 200)
    same = (before + generator.normal(0, 0.05, 200)).tolist()
    one = scored("base", up=before.tolist(), down=before.tolist(), same=before.tolist())
    other = scored("tuned", up=(before + 0.06).tolist(), down=(before - 0.03).tolist(), same=same)
    changes = {change.task: change for change in compare_models(one, other)}
    assert [change.verdict for change in changes.values()] == ["better", "worse", "no measurable change"]
    assert changes["up"].difference == pytest.approx(0.06)
    assert (changes["up"].gained, changes["up"].lost) == (200, 0)
    assert changes["same"].interval[0] < 0 < changes["same"].interval[1]
    assert abs(changes["same"].effect) < 0.3
    words = in_words(list(changes.values()))
    assert words.startswith("better on up (+6.0 nDCG@10, 95 % [+6.0, +6.0]), worse on down (-3.0")
    assert words.endswith("no measurable change on same")


def test_advice_takes_the_best_that_harms_nothing() -> None:
    generator = np.random.default_rng(3)
    values = generator.uniform(0.3, 0.6, 200)

    def judged(model: str, target: float, general: float) -> ModelScores:
        on_target = scored(model, t=(values + target).tolist())
        on_general = scored(model, "general", g=(values + general).tolist())
        return ModelScores(model, "", [*on_target.scores, *on_general.scores])

    def advice(*others: ModelScores) -> str:
        base = judged("base", 0, 0)
        changes = {other.model: compare_models(base, other, resamples=500) for other in others}
        nothing = EvaluationDetails({}, {}, {})
        return Comparison([base, *others], nothing, changes, dict.fromkeys(changes, ()), 0.95).advice()

    tuned, cocktail, worse = judged("tuned", 0.1, -0.05), judged("cocktail", 0.06, 0), judged("worse", -0.1, 0)
    assert advice(tuned, cocktail, worse) == (
        "Use cocktail: better on t (+6.0 nDCG@10, 95 % [+6.0, +6.0]), and not measurably worse than base on the other "
        "task."
    )
    assert advice(tuned, worse) == (
        "Stay with base: what is better on the target costs elsewhere (tuned is worse on g)."
    )
    assert advice(worse) == "Stay with base: no other model is measurably better on a target task."


def test_other_queries_are_refused() -> None:
    with pytest.raises(DataError, match="on other queries"):
        compare_models(scored("a", t=[1, 0]), scored("b", t=[1, 0, 1]))
    with pytest.raises(DataError, match="no task in common"):
        compare_models(scored("a", t=[1, 0]), scored("b", u=[1, 0]))


def test_resamples_are_those_of_the_bootstrap() -> None:
    values = np.random.default_rng(4).uniform(0, 1, 80)
    score = scored("a", t=values.tolist()).scores[0]
    drawn = resampled_score(score, {}, resamples=2000)
    expected = bootstrap_interval(values)
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx(expected, abs=0.01)
    # two models on the same queries are drawn together
    better = scored("b", t=(values + 0.1).tolist()).scores[0]
    assert resampled_score(better, {}) - resampled_score(score, {}) == pytest.approx(np.full(1000, 0.1))
    said = {str(row): float(value) for row, value in enumerate(values)}
    pairs = replace(score, metric="Spearman", value=1.0, per_query={}, answers=said)
    assert resampled_score(pairs, {name: 2 * value for name, value in said.items()}) == pytest.approx(np.ones(1000))
    assert (resampled_score(replace(pairs, metric="V-measure", value=0.4), {}) == 0.4).all()


def test_from_the_command_line(cli: Cli, tiny: Path, beir: Path, labelled: Path, tmp_path: Path) -> None:
    noisy = perturb(tiny, tmp_path / "noisy", 3, scale=0.5)
    tasks = ("--target", beir, "--general", labelled)
    cli("evaluate", f"base={tiny}", *tasks, "-o", tmp_path / "one")
    cli("evaluate", f"noisy={noisy}", f"again={tiny}", *tasks, "-o", tmp_path / "two")
    where = ("compare", tmp_path / "one", tmp_path / "two")
    result = cli(*where, "--resamples", 1000)
    assert "again against base: no measurable change on 2 tasks" in result.stdout
    assert result.stdout.strip().splitlines()[-1].startswith("Stay with base: ")
    found = json.loads(cli(*where, "--format", "json", "--fail-if-worse", "target", code=None).stdout)
    by_task = {one["task"]: one for one in found["models"]["noisy"]["tasks"]}
    assert by_task["animals"]["count"] == 25
    assert by_task["animals"]["difference"] == pytest.approx(by_task["animals"]["after"] - by_task["animals"]["before"])
    turned = cli(*where, "--baseline", "noisy", "--format", "json")
    assert json.loads(turned.stdout)["models"].keys() == {"base", "again"}
    assert "Did you mean 'noisy'" in cli(*where, "--baseline", "nosy", code=2).stderr
    assert "comparing needs two" in cli("compare", tmp_path / "one", code=2).stderr
    # worse on purpose: CI sees it
    lines = (tmp_path / "two/per_query.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        if row["model"] == "again" and row["task"] == "animals":
            row["per_query"] = dict.fromkeys(row["per_query"], 0.0)
    (tmp_path / "two/per_query.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    failed = cli(*where, "--fail-if-worse", "any", code=3)
    assert "measurably worse than base: " in failed.stderr
    assert "again on animals" in failed.stderr
    assert "passed, nothing is measurably worse on a general task" in cli(*where, "--fail-if-worse", "general").stderr


def test_what_can_not_fail_is_refused(cli: Cli, tiny: Path, beir: Path, labelled: Path, tmp_path: Path) -> None:
    rows = [{"sentence1": "red apple", "sentence2": f"{word} apple", "score": n} for n, word in enumerate(WORDS[:8])]
    scored = tmp_path / "alike"
    write_lines(scored / "test.jsonl", rows)  # type: ignore[arg-type]
    noisy = perturb(tiny, tmp_path / "noisy", 3)
    models = (f"base={tiny}", f"noisy={noisy}")
    cli("evaluate", *models, "--target", beir, "--general", scored, "-o", tmp_path / "one")
    (tmp_path / "one/answers.jsonl").unlink()  # as older versions left it
    result = cli("compare", tmp_path / "one")
    assert "not tested: alike: Spearman is no mean over queries or texts" in result.stdout
    assert "general task was compared" in cli("compare", tmp_path / "one", "--fail-if-worse", "general", code=2).stderr
    few = cli("compare", tmp_path / "one", "--confidence", "0.999", "--resamples", 500, code=2)
    assert "no corrected p can lie below 0.001; take 2000 or more" in few.stderr
    # other tasks for each, other options
    cli("evaluate", models[0], "--target", beir, "--general", labelled, "-o", tmp_path / "two")
    cli("evaluate", models[1], "--target", beir, "-o", tmp_path / "three")
    where = ("compare", tmp_path / "two", tmp_path / "three")
    assert "kinds: noisy was not judged on it" in cli(*where).stdout
    assert "not all models were judged" in cli(*where, "--fail-if-worse", "target", code=1).stderr
    cli("evaluate", models[1], "--target", beir, "--hybrid", "-o", tmp_path / "four")
    changed = cli("compare", tmp_path / "two", tmp_path / "four", code=1)
    assert "was evaluated with other options" in changed.stderr
    assert "hybrid True against False" in changed.stderr
    cli("evaluate", models[1], "--target", beir, "--query-prompt", "red ", "-o", tmp_path / "five")
    assert "was embedded otherwise" in cli("compare", tmp_path / "two", tmp_path / "five").stderr


def test_other_data_and_other_models_are_refused(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    import shutil

    changed = shutil.copytree(beir, tmp_path / beir.name)
    with (changed / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "new", "title": "", "text": "a new document"}) + "\n")
    noisy = perturb(tiny, tmp_path / "noisy", 3)
    cli("evaluate", f"base={tiny}", "--target", beir, "-o", tmp_path / "one")
    cli("evaluate", f"noisy={noisy}", "--target", changed, "-o", tmp_path / "two")
    assert "has other data" in cli("compare", tmp_path / "one", tmp_path / "two", code=1).stderr
    cli("evaluate", f"base={noisy}", "--target", beir, "-o", tmp_path / "three")
    assert "two models are called 'base'" in cli("compare", tmp_path / "one", tmp_path / "three", code=1).stderr
    assert "no readable evaluation" in cli("compare", beir, code=1).stderr


def test_swapping_ranks_is_the_same_as_trying_all_swaps() -> None:
    from scipy.stats import rankdata, spearmanr

    from bge_cocktail.evaluating.compare import swap_test

    generator = np.random.default_rng(3)
    wanted = {f"p{number}": float(value) for number, value in enumerate([1, 2, 3, 4, 5, 6, 7])}
    said = [dict(zip(wanted, generator.random(7).tolist(), strict=True)) for _ in range(2)]
    ranks = [rankdata(list(one.values())) for one in said]
    scores = np.array(list(wanted.values()))

    def difference(swaps: tuple[bool, ...]) -> float:
        one, other = np.where(swaps, ranks[1], ranks[0]), np.where(swaps, ranks[0], ranks[1])
        return float(spearmanr(other, scores).statistic - spearmanr(one, scores).statistic)

    observed = abs(difference((False,) * 7))
    exact = np.mean([abs(difference(swaps)) >= observed - 1e-12 for swaps in product((False, True), repeat=7)])
    p, (low, high) = swap_test(*said, wanted, "Spearman", confidence=0.95, resamples=20_000, seed=1)
    assert p == pytest.approx(exact, abs=0.02)
    assert low <= difference((False,) * 7) <= high


def test_a_worse_correlation_is_measured(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    write_alike(tmp_path / "alike", 150)
    other = perturb(tiny, tmp_path / "other", 3, scale=2.0)
    cli("evaluate", f"a={tiny}", f"b={other}", f"c={tiny}", "--target", tmp_path / "alike", "-o", tmp_path / "e")
    shown = cli("compare", tmp_path / "e").stdout
    assert "b against a: worse on alike" in shown
    assert "c against a: no measurable change on alike" in shown
    result = cli("compare", tmp_path / "e", "--fail-if-worse", "target", code=3)
    assert "measurably worse than a: b on alike" in result.stderr


def test_the_queries_that_moved_most_are_shown(
    cli: Cli, tiny: Path, beir: Path, labelled: Path, tmp_path: Path
) -> None:
    other = perturb(tiny, tmp_path / "other", 3, scale=0.5)
    where = ("--target", beir, "--general", labelled, "-o", tmp_path / "e")
    cli("evaluate", f"a={tiny}", f"b={other}", *where)
    evaluated = [json.loads(line) for line in (tmp_path / "e/per_query.jsonl").read_text().splitlines()]
    values = {one["model"]: one["per_query"] for one in evaluated if one["metric"] == "nDCG@10"}
    for first, second in ("ab", "ba"):
        shown = cli("compare", tmp_path / "e", "--show", "2", "--baseline", first, "--format", "json").stdout
        moved = [one for one in json.loads(shown)["models"][second]["moved"] if one["task"] == "animals"]
        differences = sorted(values[second][query] - value for query, value in values[first].items())
        gained, lost = [one for one in differences[::-1] if one > 0][:2], [one for one in differences if one < 0][:2]
        assert [one["after"] - one["before"] for one in moved] == pytest.approx([*gained, *lost])
        assert moved
    text = cli("compare", tmp_path / "e", "--show", "2", "--baseline", "b").stdout
    assert "animals: points" in text
    assert moved[0]["text"] in text


def test_kinds_of_texts_by_hand() -> None:
    from bge_cocktail.evaluating.query_changes import by_bucket, script

    assert script("Что это?") == "Cyrillic"
    assert script("这是什么 ok") == "Han"
    assert script("123") == "other"
    texts = {f"q{n}": {"text": "one two" if n < 8 else "мама мыла раму и пела"} for n in range(16)}
    values = {f"q{n}": 0.0 for n in range(16)}
    changed = {f"q{n}": 1.0 if n >= 8 else 0.5 for n in range(16)}
    one, other = (scored("m", task=[0.0]).scores[0] for _ in range(2))
    from dataclasses import replace

    rows = by_bucket(replace(one, per_query=values), replace(other, per_query=changed), {"asked": texts})
    found = {
        (row["kind"], row["bucket"]): (row["count"], row["difference"]) for row in rows if row["kind"] != "language"
    }
    assert found == {
        ("words", "1-3"): (8, 0.5),
        ("words", "4-7"): (8, 1.0),
        ("script", "Latin"): (8, 0.5),
        ("script", "Cyrillic"): (8, 1.0),
    }


def test_missing_judgements_are_those_that_models_agree_on() -> None:
    from bge_cocktail.evaluating.query_changes import likely_relevant
    from bge_cocktail.evaluating.store import EvaluationDetails

    def said(**found: float) -> dict[str, object]:
        ranks = {"good": list(found).index("good") + 1 if "good" in found else None}
        return {"found": found, "ranks": ranks}

    answers = {
        ("a", "t"): {"q1": said(other=0.9, good=0.5), "q2": said(good=0.9, other=0.8), "q3": said(x=0.9, good=0.8)},
        ("b", "t"): {"q1": said(other=0.8, good=0.7), "q2": said(good=0.9, other=0.8), "q3": said(y=0.9, good=0.8)},
    }
    for model in "ab":
        answers[model, "t"]["q4"] = said(looked=0.9, good=0.5)  # somebody judged it: not relevant
    asked = {f"q{n}": {"text": f"query {n}", "unwanted": ["looked"]} for n in (1, 2, 3, 4)}
    texts = {"asked": asked, "documents": dict.fromkeys(("other", "x", "y", "good", "looked"), "d")}
    (one,) = likely_relevant(["a", "b", "never judged on it"], "t", EvaluationDetails(answers, {"t": texts}, {}))
    assert (one["query"], one["document"], one["models"]) == ("q1", "other", 2)
    assert one["lead"] == pytest.approx((0.4 + 0.1) / 2)
