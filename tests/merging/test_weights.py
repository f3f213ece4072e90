"""Weights: the paper's formula, LM_Cocktail's own numbers, and searches that find what is there to find."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from conftest import ROOT, build_model, perturb
from hypothesis import given
from hypothesis import strategies as st
from merge_helpers import tensors_in
from safetensors.torch import load_file

from bge_cocktail.core.errors import UsageError
from bge_cocktail.data.record import Record
from bge_cocktail.merging.merge import merge, verify_merge
from bge_cocktail.merging.objective import chance_losses, draw_negatives, example_loss
from bge_cocktail.merging.weights import (
    MergeScores,
    WeightsResult,
    best_weights,
    best_within,
    best_without_harm,
    cocktail_weights,
    ema,
    given_weights,
    greedy,
    pareto_front,
    relative_weights,
    weightings,
)
from bge_cocktail.models.encoder import CachedEncoder, Encoder
from bge_cocktail.options import EncodeOptions, MergeOptions

sys.path.insert(0, str(ROOT / "scripts"))
Cli = Callable[..., Result]
EXAMPLES = [
    Record("which dog is red", ("the red dog runs",), ("a blue cat", "the small house")),
    Record("where is the boat", ("the boat sails near the river",), ("big train", "a grey horse")),
    Record("who sings", ("the bird sings",), ("the plum", "slow bike")),
    Record("what flies over the hill", ("the plane flies",), ("an old car", "the cherry")),
]


def test_cocktail_weights_are_the_papers_formula() -> None:
    losses, temperature = [0.5, 1.0, 3.0], 5.0
    powers = [np.exp(-loss / temperature) for loss in losses]
    assert cocktail_weights(losses, temperature) == pytest.approx([power / sum(powers) for power in powers])
    assert cocktail_weights([1000, 1001], 1.0) == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.e)])


def test_example_loss_is_lm_cocktails(tiny: Path) -> None:
    """The reference implementation's loss, written out: batches of 2, temperature 0.05, all texts as candidates."""
    from bge_cocktail.models.encoder import CachedEncoder

    examples = [
        Record("which dog is red", ("the red dog runs",), ("a blue cat", "the small house")),
        Record("where is the boat", ("the boat sails near the river",), ("big train", "a grey horse")),
        Record("who sings", ("the bird sings",), ("the plum", "slow bike")),
    ]
    encoder = CachedEncoder(tiny)
    expected = []
    for batch in (examples[:2], examples[2:]):
        queries = encoder.encode_query([record.query for record in batch])
        documents = encoder.encode_document([text for record in batch for text in (*record.pos, *record.neg)])
        scores = queries @ documents.T / 0.05
        losses = [
            np.log(np.exp(line).sum()) - line[3 * row]  # the positive is the first of every three documents
            for row, line in enumerate(scores.astype(np.float64))
        ]
        expected.append(np.mean(losses))
    assert example_loss(encoder, examples) == pytest.approx(np.mean(expected), rel=1e-5)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=6), st.floats(0.5, 5), st.floats(0.1, 10))
def test_relative_weights_know_no_scale(losses: list[float], chance: float, factor: float) -> None:
    weights = relative_weights(losses, chance)
    assert sum(weights) == pytest.approx(1)
    assert relative_weights([factor * loss for loss in losses], factor * chance) == pytest.approx(weights, abs=1e-6)
    if min(losses) < chance - 1e-6:
        assert all(weight == 0 for weight, loss in zip(weights, losses, strict=True) if loss >= chance)


def test_a_random_model_gets_no_weight(tmp_path: Path, tiny: Path) -> None:
    """LM-Cocktail's softmax gives a model that knows nothing nearly as much as the real one; relative weights don't."""
    losses, chance = [0.3, 2.9], float(np.log(16))
    assert cocktail_weights(losses)[1] > 0.35
    assert relative_weights(losses, chance)[1] < 1e-3


def test_chance_is_the_loss_of_a_model_that_tells_nothing_apart() -> None:
    class Blind:
        def encode_query(self, texts: Sequence[str], prompt: str | None = None) -> np.ndarray:
            return np.tile(np.float32([1, 0]), (len(texts), 1))

        def encode_document(self, texts: Sequence[str]) -> np.ndarray:
            return np.tile(np.float32([1, 0]), (len(texts), 1))

        encode_text = encode_document

    assert example_loss(Blind(), EXAMPLES) == pytest.approx(chance_losses(EXAMPLES).mean(), abs=1e-6)


def test_negatives_are_drawn_once_and_seeded() -> None:
    many = [Record("q", ("p",), tuple(f"n{number}" for number in range(30)))]
    one = draw_negatives(many, 7, 1)[0].neg
    assert len(one) == len(set(one)) == 7
    assert one == draw_negatives(many, 7, 1)[0].neg
    assert one != draw_negatives(many, 7, 2)[0].neg
    few = [Record("q", ("p",), ("n",))]
    assert draw_negatives(few, 7, 1)[0].neg == ("n",)


def test_cocktail_needs_examples(nudged: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`examples`"):
        merge(nudged[:2], tmp_path / "out", MergeOptions(weights="cocktail"))
    assert not (tmp_path / "out").exists()


def test_cocktail_weighs_each_model_by_its_own_loss(nudged: list[Path], tmp_path: Path) -> None:
    merged = merge(nudged, tmp_path / "out", MergeOptions(weights="cocktail"), examples=EXAMPLES)
    losses = [example_loss(CachedEncoder(path), EXAMPLES) for path in nudged]
    assert merged.losses == pytest.approx(losses, abs=1e-5)
    assert merged.weights == pytest.approx(cocktail_weights(losses), abs=1e-6)
    # with a share, the rest is divided among the others by their losses alone
    merged = merge(nudged, tmp_path / "share", MergeOptions(weights="cocktail", share=0.4), examples=EXAMPLES)
    assert merged.weights == pytest.approx([0.4, *(0.6 * weight for weight in cocktail_weights(losses[1:]))], abs=1e-6)
    described = json.loads((tmp_path / "share/run.json").read_text())
    assert [one.get("loss") for one in described["models"]] == [None, *merged.losses]


def test_every_model_keeps_its_own_prompts(nudged: list[Path], tmp_path: Path) -> None:
    import shutil

    from bge_cocktail.models.prompts import set_prompts

    prompted = shutil.copytree(nudged[0], tmp_path / "prompted")
    set_prompts(prompted, {"query": "who "})
    options = MergeOptions(weights="cocktail", prompts_from=1)
    merged = merge([prompted, nudged[0]], tmp_path / "out", options, examples=EXAMPLES)
    assert merged.losses[0] == pytest.approx(example_loss(CachedEncoder(prompted), EXAMPLES), abs=1e-5)
    assert merged.losses[1] == pytest.approx(example_loss(CachedEncoder(nudged[0]), EXAMPLES), abs=1e-5)
    assert merged.losses[0] != pytest.approx(merged.losses[1], abs=1e-4)


def test_lm_cocktails_own_numbers(tmp_path: Path) -> None:
    """What LM_Cocktail 0.0.4 gives for the same CLS-pooled models; scripts/compare_lm_cocktail.py stores it."""
    from compare_lm_cocktail import GOLDENS, examples_of, models_of

    golden = json.loads(GOLDENS.read_text())
    models = models_of(tmp_path)
    options = MergeOptions(weights="cocktail", like_lm_cocktail=True)
    merged = merge(models, tmp_path / "out", options, examples=examples_of())
    assert merged.losses == pytest.approx(golden["losses"], abs=1e-4)
    assert merged.weights == pytest.approx(golden["weights"], abs=1e-4)


def test_ema_is_the_recursion() -> None:
    """The weights are those of m <- decay m + (1 - decay) x, up to the start that a finite run has."""
    weights = ema(None, range(5), decay=0.8).weights  # type: ignore[arg-type]
    assert sum(weights) == pytest.approx(1)
    assert [later / earlier for earlier, later in pairwise(weights)] == pytest.approx([1.25] * 4)


class Fake:
    """A landscape with a known top, in the place of models."""

    names = ("a", "b", "c")

    def __init__(self, top: Sequence[float]) -> None:
        self.top, self.asked = np.asarray(top), 0

    def scores(self, weights: Sequence[float]) -> tuple[float, float | None]:
        self.asked += 1
        away = float(np.square(np.asarray(weights) - self.top).sum())
        return 1 - away, 0.5 + 0.4 * float(weights[-1])


def test_search_finds_the_top() -> None:
    landscape = Fake([0.5, 0.3, 0.2])
    found = best_weights(landscape, 3, 80, 1)  # type: ignore[arg-type]
    assert landscape.asked == len(found.trials) == 80
    assert np.abs(np.asarray(found.weights) - landscape.top).max() < 0.05
    assert found.weights == best_weights(Fake([0.5, 0.3, 0.2]), 3, 80, 1).weights  # type: ignore[arg-type]
    # few trials: never worse than the models alone and their mean
    assert best_weights(Fake([0, 1, 0]), 3, 4, 1).weights == [0, 1, 0]  # type: ignore[arg-type]


def test_pareto_takes_the_best_target_that_keeps_the_general_score() -> None:
    class Two:
        names = ("tuned", "base")

        def scores(self, weights: Sequence[float]) -> tuple[float, float | None]:
            share = weights[0]
            return share * (1.6 - share), 0.9 + 0.05 * share - 0.1 * share**2

    shares = [row / 10 for row in range(11)]
    found = best_within(Two(), 2, shares, 0.0, 40, 1)  # type: ignore[arg-type]
    assert found.weights == [0.5, 0.5]  # general score of the base again at 0.5, target still rising
    loose = best_within(Two(), 2, shares, 1.0, 40, 1)  # type: ignore[arg-type]
    assert loose.weights == [0.8, pytest.approx(0.2)]
    front = [trial["weights"][0] for trial in found.trials if trial["on_front"]]
    # below 0.25 both scores rise, above 0.8 both fall
    assert sorted(front) == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7, 0.8])


class Seen(Fake):
    """A landscape whose general score falls with the first weight, seen through so many queries."""

    unsure = 0.0
    other_methods = ()

    def __init__(self, harm: float, noise: float) -> None:
        super().__init__([1, 0, 0])
        self.harm, self.noise = harm, noise

    def judged(self, weights: Sequence[float], method: str = "") -> MergeScores:
        target, _ = self.scores(weights)
        general = 0.5 - self.harm * weights[0]
        drawn = general + self.noise * np.random.default_rng(int(1000 * weights[0])).normal(size=1000)
        return MergeScores(target, general, target + self.unsure * np.random.default_rng(1).normal(size=1000), drawn)


def test_auto_takes_the_best_target_that_does_no_harm() -> None:
    shares = [0.3, 0.5, 0.7]

    def found(harm: float, noise: float, epsilon: float = 0.005) -> WeightsResult:
        return best_without_harm(Seen(harm, noise), 3, shares, epsilon)  # type: ignore[arg-type]

    harmless = found(0, 1e-6)
    assert harmless.weights == [1, 0, 0]
    assert harmless.note.startswith("use 100 % a: target 1.0000 (base -1.0000), general 0.5000")
    # 0.005 may be lost: half of the tuned model loses that much, more would cost too much
    assert found(0.0099, 1e-6).weights[0] == 0.5
    assert "would cost the general score more than 0.005" in found(0.0099, 1e-6).note
    # a small dev is no reason to stay; how little it says is told
    unsure = found(0, 0.1)
    assert unsure.weights == [1, 0, 0]
    assert "general 0.5000 (base 0.5000; at least 0.2" in unsure.note
    lost = found(0.2, 1e-6)
    assert lost.weights == [0, 0, 1]
    assert lost.note.startswith("stay with c: every merge with a better target score (up to 1.0000")
    # alone, at each share with the base, and half with all others
    assert len(harmless.trials) == 2 + len(shares) + 1
    assert all(sum(trial["weights"]) == pytest.approx(1) for trial in harmless.trials)


def test_auto_stays_where_nothing_is_gained() -> None:
    class Worse(Seen):
        def scores(self, weights: Sequence[float]) -> tuple[float, float | None]:
            return -weights[0], None

    found = best_without_harm(Worse(0, 0), 2, [0.5], 0.0)  # type: ignore[arg-type]
    assert found.weights == [0, 1]
    assert "no merge has a better target score" in found.note


def test_auto_lets_the_general_score_decide_between_targets_that_dev_cannot_tell_apart() -> None:
    """Ten queries are too few to tell 0.90 from 0.91; what is measurably worse is out, whatever its general score."""
    scores = {(0, 1): (0.80, 0.70), (1, 0): (0.91, 0.71), (0.5, 0.5): (0.90, 0.76), (0.3, 0.7): (0.83, 0.79)}

    class Few:
        names = ("tuned", "base")
        other_methods = ()

        def judged(self, weights: Sequence[float], method: str = "") -> MergeScores:
            target, general = scores[tuple(weights)]  # type: ignore[index]
            generator = np.random.default_rng(int(100 * weights[0]))
            return MergeScores(target, general, target + 0.02 * generator.normal(size=1000), np.full(1000, general))

    found = best_without_harm(Few(), 2, [0.5, 0.3], 0.0)  # type: ignore[arg-type]
    assert found.weights == [0.5, 0.5]
    assert "target scores up to 0.9100 can't be told from it" in found.note
    assert [trial["below_best"] for trial in found.trials] == [True, False, False, True]


def test_auto_tries_ties_where_there_are_others(
    cli: Cli, tiny: Path, nudged: list[Path], beir: Path, labelled: Path, tmp_path: Path
) -> None:
    """Where it is chosen, the merge is that of the method itself, and is told and verified as such."""
    trios = [nudged[0], nudged[1], tiny]

    class Ties:
        """A score that sees only which way was taken."""

        def __init__(self) -> None:
            self.asked = 0

        def __call__(self, encoder: Any) -> tuple[float, float, Callable[[str], np.ndarray]]:
            self.asked += 1
            best = self.asked == 4  # base, tuned, half with the base, half with all, and then ties
            value = 0.9 if self.asked == 5 else 0.5 + 0.1 * best
            return value, 0.5, lambda role: np.full(1000, value if role == "target" else 0.5)

    options = MergeOptions(weights="auto", auto_shares=[0.5])
    score = Ties()
    found = merge(trios, tmp_path / "auto", options, score=score)
    assert score.asked == 5
    assert found.found.method == "ties"
    assert found.weights == (0.5, 0.5, 0.0)
    assert "by ties on" in found.found.note
    same = MergeOptions(method="ties", base=str(tiny), weights=[0.5, 0.5])
    merge(trios[:2], tmp_path / "ties", same)
    mine, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("auto", "ties"))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert json.loads((tmp_path / "auto/run.json").read_text())["method"] == "ties"
    assert "by the method `ties`" in (tmp_path / "auto/README.md").read_text()
    assert verify_merge(tmp_path / "auto")["identical"]


def test_auto_on_real_models(
    cli: Cli, tiny: Path, nudged: list[Path], beir: Path, labelled: Path, tmp_path: Path
) -> None:
    shutil.copytree(labelled, general := tmp_path / "general")
    shutil.copyfile(general / "test.jsonl", general / "dev.jsonl")
    shutil.copytree(beir, target := tmp_path / "target")
    shutil.copyfile(target / "qrels/test.tsv", target / "qrels/dev.tsv")
    where = ("--target", target, "--general", general, "--weights", "auto", "--epsilon", 0.5)
    cli("merge", nudged[0], tiny, *where, "-o", tmp_path / "out")
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert len(run["trials"]) == 5
    best = max(run["trials"], key=lambda trial: trial["target"])
    assert [one["weight"] for one in run["models"]] == pytest.approx(best["weights"])
    assert run["note"].startswith(("use ", "stay with "))
    base = run["trials"][0]
    assert base["general_at_least"] == pytest.approx(base["general"])
    said = cli("merge", nudged[0], tiny, "--target", target, "--weights", "auto", "-o", tmp_path / "o2", code=2).stderr
    assert "need --target and --general tasks" in said or "need `target` and `general` tasks" in said


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_given_weights_are_the_same_in_any_order(weights: list[float]) -> None:
    assert given_weights(weights, 3) == given_weights(weights[::-1], 3)[::-1]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    trials = [{"target": target, "general": general} for target, general in points]
    front = {(trial["target"], trial["general"]) for trial in pareto_front(trials)}
    expected = {(x, y) for x, y in points if not any((a >= x and b > y) or (a > x and b >= y) for a, b in points)}
    assert front == expected


def test_greedy_keeps_what_helps() -> None:
    found = greedy(Fake([0.5, 0.5, 0]), range(3))  # type: ignore[arg-type]
    assert found.weights == [0.5, 0.5, 0]
    assert "kept 2 of 3" in found.note


@pytest.fixture(scope="module")
def good_and_bad(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> list[Path]:
    """A model, and the same with much noise: a search must tell them apart."""
    folder = tmp_path_factory.mktemp("goodbad")
    return [tiny, perturb(tiny, folder / "noise", 3, scale=0.05)]


def test_gradient_is_the_derivative(good_and_bad: list[Path], tmp_path: Path) -> None:
    """A step follows dL/dw = <dL/dtheta, theta_i>: the same as central differences of the loss of merged models."""
    import torch
    from torch.func import functional_call

    from bge_cocktail.data.record import positives_by_query
    from bge_cocktail.merging.objective import EncoderObjective
    from bge_cocktail.merging.plan import GroupWeights, Plan
    from bge_cocktail.merging.resolve import open_model

    checkpoints = tuple(open_model(str(path), tmp_path) for path in good_and_bad)
    plan = Plan(checkpoints, None, MergeOptions(), GroupWeights([0.5, 0.5], {}))
    objective = EncoderObjective(plan, EXAMPLES, EncodeOptions(cache=False, device="cpu"), None, tmp_path)
    from bge_cocktail.merging.gradient import _stacks

    stacks, _ = _stacks(objective, False, False)
    names = dict(objective.parameter_names)
    shapes = {key: value.shape for key, value in objective.parameters.items()}
    known = positives_by_query(EXAMPLES)
    weights = torch.tensor([0.6, 0.4], requires_grad=True)
    merged = {names[key]: (weights @ rows).view(shapes[key]) for key, rows in stacks.items()}
    loss = objective.batch_loss(
        EXAMPLES,
        known,
        lambda features: functional_call(objective.model.eval(), merged, (features,))["sentence_embedding"],
    )
    (gradient,) = torch.autograd.grad(loss, weights)

    def loss_at(one: float, two: float) -> float:
        scores = objective.merged(WeightsResult([one, two]))
        del scores
        with torch.no_grad():
            return float(
                objective.batch_loss(EXAMPLES, known, lambda features: objective.model(features)["sentence_embedding"])
            )

    step = 1e-2
    for row, expected in enumerate(gradient.tolist()):
        ends = []
        for sign in (1, -1):
            moved = [0.6, 0.4]
            moved[row] += sign * step
            ends.append(loss_at(*moved))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=0.05, abs=1e-3)


@pytest.mark.parametrize("per_layer", [False, True])
def test_descent_lowers_the_loss(good_and_bad: list[Path], tmp_path: Path, per_layer: bool) -> None:
    options = MergeOptions(weights="gradient", steps=15, rate=0.3, per_layer=per_layer)
    merged = merge(good_and_bad, tmp_path / "out", options, examples=EXAMPLES)
    before, after = map(float, re.findall(r"(\d\.\d+) with", merged.found.note))
    assert after < before
    assert merged.found.trials[0]["loss"] == pytest.approx(before, abs=1e-3)
    assert len(merged.found.trials) == 15
    assert bool(merged.found.weights_for) == per_layer
    # what was found is what was merged: the recipe and the record give it again
    from bge_cocktail.merging.merge import verify_merge

    assert verify_merge(tmp_path / "out")["identical"] is True


def test_self_positioning_finds_a_length_too(tiny: Path, nudged: list[Path], tmp_path: Path) -> None:
    options = MergeOptions(method="task-arithmetic", base=str(tiny), weights="self-positioning", steps=10, rate=0.3)
    merged = merge(nudged, tmp_path / "out", options, examples=EXAMPLES)
    assert merged.found.scale not in (None, pytest.approx(1))
    before, after = map(float, re.findall(r"(\d\.\d+) with", merged.found.note))
    assert after < before
    with pytest.raises(UsageError, match="`method=task-arithmetic`"):
        merge(nudged, tmp_path / "bad", MergeOptions(weights="self-positioning"), examples=EXAMPLES)


@pytest.mark.parametrize("weights", ["greedy", "search"])
def test_searches_prefer_the_good_model(good_and_bad: list[Path], tmp_path: Path, weights: str) -> None:
    options = MergeOptions(weights=weights, **({"trials": 6} if weights == "search" else {}))

    def score(encoder: Encoder) -> tuple[float, float | None]:
        return -example_loss(encoder, EXAMPLES), None

    by_score = merge(good_and_bad, tmp_path / "score", options, score=score)
    by_loss = merge(good_and_bad, tmp_path / "loss", options, examples=EXAMPLES)
    assert by_score.weights == by_loss.weights  # without tasks, the loss on the examples is the score
    alone = [example_loss(CachedEncoder(path), EXAMPLES) for path in good_and_bad]
    assert example_loss(CachedEncoder(tmp_path / "score"), EXAMPLES) <= min(alone) + 1e-5


def test_what_is_scored_is_what_is_written(nudged: list[Path], tmp_path: Path) -> None:
    """A merge is scored in memory; the folder embeds the same."""
    seen = []

    def score(encoder: Encoder) -> tuple[float, float | None]:
        seen.append(encoder.encode_document(["the red dog runs", "a cat"]))
        return float(len(seen)), None

    merged = merge(nudged[:2], tmp_path / "out", MergeOptions(weights="search", trials=5), score=score)
    found = CachedEncoder(merged.folder).encode_document(["the red dog runs", "a cat"])
    assert np.abs(found - seen[-1]).max() < 1e-6  # the last was the best


def test_weightings_are_listed() -> None:
    assert {
        "uniform",
        "cocktail",
        "relative",
        "ema",
        "greedy",
        "gradient",
        "self-positioning",
        "search",
        "pareto",
        "auto",
    } == set(weightings)


def test_a_large_model_and_a_small_one(tiny: Path, tmp_path: Path) -> None:
    """Weights are not sought for models that can't be merged."""
    from bge_cocktail.core.errors import DataError

    wide = build_model(tmp_path / "wide", hidden=48)
    with pytest.raises(DataError, match="can't be merged"):
        merge([tiny, wide], tmp_path / "out", MergeOptions(weights="cocktail"), examples=EXAMPLES)


def test_scripts_are_found() -> None:
    assert (ROOT / "scripts/compare_lm_cocktail.py").is_file()


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "gradient", "steps": 3},
        {"weights": "self-positioning", "steps": 3, "method": "task-arithmetic"},
        {"method": "fisher"},
        {"method": "regmean"},
    ],
    ids=str,
)
def test_what_looks_at_data_embeds_with_the_prompts_that_are_written(
    good_and_bad: list[Path], tmp_path: Path, options: dict[str, object]
) -> None:
    """With --prompts-from 2 the merge is the one that is found where the first model declares the same prompts."""
    from bge_cocktail.models.prompts import set_prompts

    first, second = good_and_bad
    prompts = {"query": "small red dog runs near the river ", "document": "the blue boat "}
    prompted = shutil.copytree(second, tmp_path / "prompted")
    set_prompts(prompted, prompts)
    alike = shutil.copytree(first, tmp_path / "alike")
    set_prompts(alike, prompts)
    data = {"examples": EXAMPLES, "encoding": EncodeOptions(cache=False, device="cpu")}

    def merged(one: Path, **more: object) -> np.ndarray:
        if options.get("method") == "task-arithmetic":
            more["base"] = str(one)
        result = merge([one, prompted], tmp_path / "out", MergeOptions(**options, **more), **data, overwrite=True)
        tensors = tensors_in(result.folder)
        return np.concatenate([tensors[name].ravel() for name in sorted(tensors) if tensors[name].dtype == np.float32])

    expected, found, without = merged(alike), merged(first, prompts_from=2), merged(first, prompts_from=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert np.abs(without - expected).max() > 1e-6
