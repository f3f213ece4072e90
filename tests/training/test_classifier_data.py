"""Classifiers: nothing of test is learned, what can't be used is refused with its place, and no file is lost."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from conftest import WORDS, write_lines

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.data.labelled import LabelledTexts
from bge_cocktail.data.record import pair_key
from bge_cocktail.data.sources import Source, read_examples, splits_of
from bge_cocktail.options import ClassifyOptions, EvaluateOptions, PredictOptions
from bge_cocktail.training.classifier.data import ClassifierData, read_class_data, sample_per_class
from bge_cocktail.training.classifier.evaluate import f1_of_classes, judge_logits
from bge_cocktail.training.classifier.loss import label_loss
from bge_cocktail.training.classifier.model import (
    Classifier,
    ClassifierConfig,
    load_classifier,
    make_classifier,
    read_config,
    save_classifier,
)
from bge_cocktail.training.classifier.predict import predict
from bge_cocktail.training.classifier.repeated_runs import SPACE, fold_runs, seed_runs
from bge_cocktail.training.classifier.train import pairs_of_classes, train_classifier
from bge_cocktail.training.engine.repeat import search

Cli = Callable[..., Result]
FAST: dict[str, Any] = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3, "device": "cpu", "precision": "fp32"}
FP32 = PredictOptions(device="cpu", precision="fp32")
CLI = ("--epochs", 1, "--device", "cpu", "--precision", "fp32")


def options(**changes: object) -> ClassifyOptions:
    return ClassifyOptions.model_validate({**FAST, **changes})


def data_of(path: Path, **changes: object) -> ClassifierData:
    return read_class_data(Source(str(path)), options(**changes))


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def some(count: int, label: Callable[[int], Any], first: int = 0) -> list[dict[str, object]]:
    """Distinct texts."""
    return [
        {"text": f"the {WORDS[number % 20]} {WORDS[number // 20 % 20]} {number}", "label": label(number)}
        for number in range(first, first + count)
    ]


def parity(number: int) -> str:
    return ("even", "odd")[number % 2]


def saved(tiny: Path, folder: Path, *, pairs: bool = False, head: str = "cls", labels: Any = ("even", "odd")) -> Path:
    """A classifier that nothing was learned by."""
    folder.mkdir()
    model = make_classifier(tiny, labels, options(head=head), "cpu")
    settings = ClassifierConfig(labels=list(labels), pairs=pairs, max_length=model.max_seq_length)
    save_classifier(model, settings, folder, like=tiny)
    return folder


@pytest.fixture(scope="module")
def plain(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny, tmp_path_factory.mktemp("saved") / "classifier")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_lines(tmp_path / "data/train.jsonl", some(60, parity))
    write_lines(tmp_path / "data/dev.jsonl", some(20, parity, 60))
    write_lines(tmp_path / "data/test.jsonl", some(20, parity, 80))
    return tmp_path / "data"


# what is learned


def test_texts_of_test_are_left_out_of_train(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_lines(folder / "test.jsonl", some(20, parity, 50))  # 10 of train, 10 of dev
    data = data_of(folder)
    held = {pair_key(row["text"]) for row in rows_in(folder / "test.jsonl")}
    assert len(data.train) == 50
    assert not held & {pair_key(text) for text in data.train.texts}
    assert "10 texts of train are also in test and are left out of train" in caplog.text


def test_folds_learn_nothing_of_test(folder: Path) -> None:
    write_lines(folder / "test.jsonl", some(20, parity, 50))  # 10 of train, 10 of dev
    runs = fold_runs(data_of(folder), options(), 3)
    held = {pair_key(row["text"]) for row in rows_in(folder / "test.jsonl")}
    for own, _ in runs.values():
        assert not held & {pair_key(text) for text in (*own.train.texts, *own.dev.texts)}


def test_a_test_without_labels_stops_no_training(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_lines(folder / "test.jsonl", [{"text": "the dog"}])
    assert len(data_of(folder).train) == 60
    assert "test can't be read" in caplog.text


def test_glue_keeps_the_labels_of_its_tests_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("bge_cocktail.data.sources.hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: ["train", "validation", "test"])
    assert splits_of("sst2") == ["dev", "train"]
    assert splits_of("nli") == ["dev", "test", "train"]
    with pytest.raises(DataError, match=r"sst2: the labels of test are kept back .*; take `split=dev`"):
        next(read_examples("sst2", split="test"))


def test_each_seed_draws_its_own_texts(folder: Path) -> None:
    data = data_of(folder, per_class=3)
    runs = seed_runs(data, options(per_class=3), [1, 2])
    chosen = [set(sample_per_class(*one).train.texts) for one in runs.values()]
    assert [len(one) for one in chosen] == [6, 6]
    assert chosen[0] != chosen[1]
    for train in (sample_per_class(*one).train for one in fold_runs(data, options(per_class=3), 4).values()):
        assert Counter(train.labels) == {(0,): 3, (1,): 3}


def test_folds_of_several_labels(tmp_path: Path) -> None:
    names = ["red", "green", "blue"]
    rows = some(60, lambda number: [name for place, name in enumerate(names) if number % (place + 2) == 0])
    rows[-1]["label"] = names  # a set of labels that no other text has
    write_lines(tmp_path / "train.jsonl", rows[:45])
    write_lines(tmp_path / "dev.jsonl", rows[45:])
    data = data_of(tmp_path, multi_label=True)
    runs = fold_runs(data, options(multi_label=True), 3)
    judged = [text for own, _ in runs.values() for text in own.dev.texts]
    assert sorted(judged) == sorted(str(row["text"]) for row in rows)
    with pytest.raises(UsageError, match="folds=40: allowed are 2 to"):
        fold_runs(data, options(multi_label=True), 40)


def test_weights_reach_the_pairs_of_few_texts() -> None:
    train = LabelledTexts(["a one", "a two", "b one", "b two"], [(0,), (0,), (1,), (1,)], [1.0, 5.0, 0.0, 2.0])
    data = ClassifierData(train, train, None, ["a", "b"], False, "")
    assert {one.query: one.weight for one in pairs_of_classes(data, 2, 0)} == dict(
        zip(train.texts, train.weights, strict=True)
    )


def test_a_search_goes_by_what_was_learned(tmp_path: Path) -> None:
    pytest.importorskip("optuna")

    def attempt(_proposed: Any, folder: Path, report: Callable[[int, float], None]) -> None:
        report(0, 0.9)  # before anything is learned
        report(7, 0.5)
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"dev_best": 0.5}))

    found = search(
        tmp_path / "out", options(), ["epochs"], SPACE, attempt, "k", "accuracy", 2, resume=False, overwrite=False
    )
    assert [one["dev"] for one in found["trials"]] == [0.5, 0.5]


def test_a_pooled_head_is_kept(tiny: Path, tmp_path: Path) -> None:
    base = saved(tiny, tmp_path / "base", head="pooled")
    there = load_classifier(base, device="cpu").model.state_dict()
    kept = make_classifier(base, ["even", "odd"], options(head="pooled"), "cpu").state_dict()
    assert there.keys() == kept.keys()
    assert all(torch.equal(there[name], kept[name]) for name in there)
    other = make_classifier(base, ["a", "b", "c"], options(head="pooled"), "cpu")
    assert other.num_labels == 3
    with pytest.raises(UsageError, match="head_layers and head_dropout are for a new head"):
        make_classifier(base, ["even", "odd"], options(head="pooled", head_layers=2), "cpu")


# what is refused


@pytest.mark.parametrize(
    ("rows", "changes", "said"),
    [
        (
            [{"text": "one", "label": "a", "weight": -1}, {"text": "two", "label": "b"}],
            {},
            r"data.jsonl:1: 'weight' must be 0 or more, got -1",
        ),
        ([{"text": f"t {n}", "label": []} for n in range(9)], {"multi_label": True}, "all texts have the label ''"),
        ([{"text": f"t {n}", "label": ["a"][n:]} for n in range(9)], {}, "'t 1' has an empty list of labels, which"),
    ],
)
def test_data_that_nothing_can_be_learned_from(
    rows: list[dict[str, object]], changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "data.jsonl", rows)
    with pytest.raises(DataError, match=said):
        data_of(path, **changes)


def test_a_training_that_would_learn_nothing(tiny: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_lines(folder / "train.jsonl", [{**row, "weight": 0} for row in some(20, parity)])
    with pytest.raises(DataError, match="all texts of train have the weight 0"):
        train_classifier(tiny, data_of(folder), out, options())
    write_lines(folder / "train.jsonl", some(20, parity))
    with pytest.raises(DataError, match="train has fewer than two of 'even' and 1 more"):
        train_classifier(tiny, data_of(folder), out, options(few_shot=True, per_class=1))
    with pytest.raises(UsageError, match="patience does nothing in few_shot"):
        train_classifier(tiny, data_of(folder), out, options(few_shot=True, patience=1))
    with pytest.raises(UsageError, match="word_share goes with augment"):
        train_classifier(tiny, data_of(folder), out, options(word_share=0.5))
    pair = [{"premise": f"{row['text']}", "hypothesis": "so", "label": row["label"]} for row in some(40, parity)]
    write_lines(tmp_path / "pairs/train.jsonl", pair)
    for changes, said in (({"truncation": "head+tail"}, "truncation"), ({"few_shot": True}, "few_shot")):
        with pytest.raises(UsageError, match=rf"{said}.* is for single texts"):
            train_classifier(tiny, data_of(tmp_path / "pairs"), out, options(**changes))
    assert not out.exists()


def test_labels_are_stripped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["good", "good ", " bad", "bad", "Good"]
    data = data_of(write_lines(tmp_path / "data.jsonl", some(50, lambda number: names[number % 5])))
    assert data.names == ["Good", "bad", "good"]
    assert "labels that differ in case alone are several classes: Good, good" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": ["a", "a"]}, "two classes are called 'a'"),
        ({"labels": ["a"]}, "a classifier has two labels or more"),
        ({"temperature": 0}, "temperature: .*greater than 0"),
        ({"temperature": "warm"}, "temperature: .*number.*'warm'"),
        ({"truncation": "middle"}, "truncation: .*'middle'"),
        ({"threshold": 2}, "threshold"),
        ({"max_length": 0}, "max_length"),
        ({"temprature": 1}, "unknown name 'temprature'.*'temperature'"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], said: str, plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "classifier.json"
    path.write_text(json.dumps({**json.loads((plain / "classifier.json").read_text()), **change}))
    with pytest.raises(DataError, match=rf"classifier.json: {said}"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"0": "LABEL_0"}, "two labels or more"),
        ({"0": "a", "1": "a"}, "two classes are called 'a'"),
        ({"first": "a", "1": "b"}, "the keys of id2label are numbers, got 'first'"),
    ],
)
def test_labels_of_a_downloaded_model_are_checked(
    labels: dict[str, str], said: str, plain: Path, tmp_path: Path
) -> None:
    config = json.loads((plain / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": labels}))
    with pytest.raises(DataError, match=said):
        read_config(tmp_path)


def test_pairs_and_single_texts_are_told_apart(tiny: Path, plain: Path, folder: Path, tmp_path: Path, cli: Cli) -> None:
    pair = [{"premise": row["text"], "hypothesis": "so", "label": row["label"]} for row in some(10, parity)]
    pairs = write_lines(tmp_path / "pairs.jsonl", pair)
    said = cli("classify", "evaluate", plain, pairs, "-o", tmp_path / "out", code=1).output
    assert "the classifier takes single texts, text 1 is a pair" in said
    other = saved(tiny, tmp_path / "other", pairs=True)
    said = cli("classify", "evaluate", other, folder, "-o", tmp_path / "out", code=1).output
    assert "the classifier takes pairs of texts, text 1 is a single text" in said
    # a downloaded model doesn't say what it takes
    (other / "classifier.json").unlink()
    assert len(cli("classify", "predict", other, pairs).stdout.splitlines()) == 10
    as_pipelines = write_lines(tmp_path / "more.jsonl", [{"text": "one", "text_pair": "two"}])
    assert len(cli("classify", "predict", other, as_pipelines).stdout.splitlines()) == 1
    assert len(cli("classify", "predict", other, folder / "test.jsonl").stdout.splitlines()) == 20


def test_a_probe_learns_nothing_that_is_judged(tiny: Path, plain: Path, folder: Path, tmp_path: Path, cli: Cli) -> None:
    common = ("--encoder", tiny, "-o", tmp_path / "out", "--device", "cpu")
    for arguments in ((folder / "test.jsonl",), (folder, "--split", "dev"), (folder, "--split", "train")):
        said = cli("classify", "evaluate", plain, *arguments, *common, code=2).output
        assert "judge the test of a folder or data set" in " ".join(said.split())
    several = json.loads((plain / "classifier.json").read_text()) | {"multi_label": True}
    shutil.copytree(plain, tmp_path / "several")
    (tmp_path / "several/classifier.json").write_text(json.dumps(several))
    said = cli("classify", "evaluate", tmp_path / "several", folder, *common, code=2).output
    assert "give a text one label" in " ".join(said.split())


def test_trials_go_with_a_search(tiny: Path, folder: Path, tmp_path: Path, cli: Cli) -> None:
    for command in (("classify", "train"), ("train",)):
        said = cli(*command, folder, "-m", tiny, "-o", tmp_path / "out", "--trials", 5, code=2).output
        assert "--trials goes with --search" in said


# predictions


def test_predictions_replace_neither_input_nor_model(plain: Path, folder: Path, tmp_path: Path, cli: Cli) -> None:
    texts, config = folder / "test.jsonl", plain / "config.json"
    before = texts.read_bytes(), config.read_bytes()
    for output in (texts, config):
        said = cli("classify", "predict", plain, texts, "-o", output, "--overwrite", code=2).output
        assert "is or lies in an input" in said
    assert "is a folder; the output is a file" in cli("classify", "predict", plain, texts, "-o", folder, code=2).output
    assert (texts.read_bytes(), config.read_bytes()) == before
    out = tmp_path / "out.jsonl"
    cli("classify", "predict", plain, texts, "-o", out)
    assert "exists already; choose another name" in cli("classify", "predict", plain, texts, "-o", out, code=2).output
    cli("classify", "predict", plain, texts, "-o", out, "--overwrite")
    assert len(rows_in(out)) == 20


def test_no_column_is_lost(plain: Path, tmp_path: Path, cli: Cli) -> None:
    rows: list[dict[str, object]] = [{"text": "one"}, {"text": "two", "id": 7}]
    texts = write_lines(tmp_path / "texts.jsonl", rows)
    said = cli("classify", "predict", plain, texts, "--format", "csv", "-o", tmp_path / "out.csv", code=1).output
    assert f"{texts}:2: the first row has no column 'id'" in said
    assert not (tmp_path / "out.csv").exists()
    assert json.loads(cli("classify", "predict", plain, texts).stdout.splitlines()[1])["id"] == 7
    write_lines(texts, [{"text": "one", "predicted": "even"}])
    assert "there is a column 'predicted' already" in cli("classify", "predict", plain, texts, code=1).output


def test_columns_of_predictions_are_told_as_in_training(tiny: Path, plain: Path, tmp_path: Path, cli: Cli) -> None:
    texts = write_lines(tmp_path / "texts.jsonl", [{"tweet": "one"}])
    assert "can't tell which column is the text; found tweet" in cli("classify", "predict", plain, texts, code=1).output
    table = tmp_path / "texts.csv"
    table.write_text("tweet,more\nthe dog,1\nthe cat,2\n")
    found = list(
        csv.DictReader(
            io.StringIO(cli("classify", "predict", plain, table, "--columns", "text=tweet", "--format", "csv").stdout)
        )
    )
    assert [(row["tweet"], row["more"]) for row in found] == [("the dog", "1"), ("the cat", "2")]
    pairs = saved(tiny, tmp_path / "pairs", pairs=True)
    write_lines(texts, [{"question1": "one", "question2": "two"}])
    assert len(cli("classify", "predict", pairs, texts).stdout.splitlines()) == 1
    assert "unknown role 'txt'" in cli("classify", "predict", plain, table, "--columns", "txt=a", code=2).output


def test_texts_that_are_no_text(plain: Path, tmp_path: Path, cli: Cli) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "half \\ud83d of one"}\n')
    assert f"{broken}:1: 'text' holds half of a character" in cli("classify", "predict", plain, broken, code=1).output
    lines = tmp_path / "lines.txt"
    lines.write_bytes(b"fine\nnot \xff fine\n")
    assert f"{lines}:2: not UTF-8" in cli("classify", "predict", plain, lines, code=1).output
    # what is no text to predict goes through as JSON can say it
    broken.write_text('{"text": "whole", "note": "half \\ud83d of one"}\n')
    cli("classify", "predict", plain, broken, "-o", tmp_path / "out.jsonl")
    assert rows_in(tmp_path / "out.jsonl")[0]["note"] == "half \ud83d of one"


def test_a_temperature_changes_no_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ClassifierConfig(labels=["a", "b"], multi_label=True, threshold=0.3, temperature=3.0)
    logits = np.array([[-1.2, -0.3]], np.float32)
    monkeypatch.setattr("bge_cocktail.training.classifier.predict.logits_of", lambda *_: logits)
    for calibrated in (False, True):
        [found] = predict(
            Classifier(model=None, settings=settings),  # type: ignore[arg-type]
            ["text"],
            FP32.model_copy(update={"calibrated": calibrated}),
        )
        assert found.labels == ("b",)


# numbers


def judged(logits: np.ndarray, labels: list[int]) -> dict[str, Any]:
    data = LabelledTexts([f"t {row}" for row in range(len(labels))], [(one,) for one in labels], [1.0] * len(labels))
    found = judge_logits(logits.astype(np.float32), data, ClassifierConfig(labels=["no", "yes"]), EvaluateOptions())
    return {score["metric"]: score for score in found["scores"]} | found


def test_intervals_of_few_texts() -> None:
    found = judged(np.array([[0.0, -1], [0, -2], [0, 1], [0, 2]]), [1, 1, 0, 0])
    assert found["AUC"]["positive"] == "yes"
    # resamples of one class say nothing, and don't count as perfect
    assert (found["AUC"]["value"], *found["AUC"]["interval"]) == (0, 0, 0)


def test_the_interval_of_a_calibration_error_holds_it() -> None:
    for seed in range(3):
        generator = np.random.default_rng(seed)
        logits = generator.normal(0, 2, (1000, 2))
        sure = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
        error = judged(logits, (generator.random(1000) < sure).astype(int).tolist())["calibration error"]
        low, high = error["interval"]
        assert 0 <= low <= error["value"] <= high


def test_all_doubtful_labels_are_listed() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, 300)
    given = np.where(np.arange(300) < 60, 1 - truth, truth)
    logits = (
        np.stack([-4.0 * truth, 4.0 * truth], axis=1) - np.array([[-2.0, 2.0]]) + generator.normal(0, 0.1, (300, 2))
    )
    errors = judged(logits, given.tolist())["label_errors"]
    assert {one["number"] for one in errors} == set(range(1, 61))


def test_no_labels_at_all_are_no_nan() -> None:
    nothing = np.zeros((3, 2), bool)
    assert f1_of_classes(nothing, nothing) == 1.0


@pytest.mark.parametrize("several", [False, True])
def test_focal_has_a_slope_where_nothing_is_doubted(several: bool) -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    chosen = options(loss="focal", focal_gamma=0.5, multi_label=several)
    label_loss(logits, torch.tensor([[1.0, 0.0]]), chosen, torch.ones(2)).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
