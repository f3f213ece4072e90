"""Classifiers: they learn, load with plain transformers, predict as they were trained, and say what is wrong."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from conftest import WORDS, write_lines

from bge_cocktail.core.errors import CocktailError, DataError, UsageError
from bge_cocktail.core.runs import hash_path
from bge_cocktail.data.labelled import LabelledTexts
from bge_cocktail.data.sources import Source
from bge_cocktail.models.encoder import load_encoder
from bge_cocktail.options import ClassifyOptions, PredictOptions
from bge_cocktail.training.classifier.data import ClassifierData, read_class_data, sample_per_class, with_augmented
from bge_cocktail.training.classifier.evaluate import judge_classifier
from bge_cocktail.training.classifier.loss import ShuffledBatches, class_weights, label_loss
from bge_cocktail.training.classifier.model import (
    ClassifierConfig,
    head_parameters,
    load_classifier,
    make_classifier,
    read_config,
)
from bge_cocktail.training.classifier.predict import Tokens, keep_ends, predict
from bge_cocktail.training.classifier.repeated_runs import fold_runs
from bge_cocktail.training.classifier.train import train_classifier

Cli = Callable[..., Result]
FAST: dict[str, Any] = {
    "head": "cls",
    "epochs": 4,
    "batch_size": 16,
    "learning_rate": 3e-3,
    "device": "cpu",
    "precision": "fp32",
}
FP32 = PredictOptions(device="cpu", precision="fp32")
CLI = ("--epochs", 4, "--batch-size", 16, "--learning-rate", 3e-3, "--device", "cpu", "--precision", "fp32")


def options(**changes: object) -> ClassifyOptions:
    return ClassifyOptions.model_validate({**FAST, **changes})


def data_of(folder: Path, **changes: object) -> ClassifierData:
    return read_class_data(Source(str(folder)), options(**changes))


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs: what the second text names."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(160):
        one, other = generator.choice(WORDS[10:15], 2, replace=False).tolist()
        colour, same = generator.choice(WORDS[:5]), number % 2 == 0
        rows.append(
            {
                "premise": f"the {colour} {one} {generator.choice(WORDS[15:20])}",
                "hypothesis": f"{'big' if same else 'small'} {other}",
                "label": int(same),
            }
        )
    write_lines(folder / "train.jsonl", rows[:120])
    write_lines(folder / "dev.jsonl", rows[120:])
    return folder


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts with any number of labels: the colours and fruits that they name."""
    folder = tmp_path_factory.mktemp("several")
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(200):
        chosen = [name for name in ("red", "green", "apple") if generator.random() < 0.5]
        rest = generator.choice(WORDS[10:20], 3).tolist()
        rows.append({"text": " ".join(["the", *chosen, *rest]), "label": chosen})
    write_lines(folder / "train.jsonl", rows[:150])
    write_lines(folder / "dev.jsonl", rows[150:])
    return folder


@pytest.fixture(scope="module")
def trained(tiny: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with the architecture's own head."""
    return train_classifier(tiny, data_of(labelled), tmp_path_factory.mktemp("trained") / "classifier", options())


def texts_of(folder: Path, split: str = "test") -> tuple[list[str], list[str]]:
    rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def accuracy_of(model: Path, texts: list[Any], labels: list[str]) -> float:
    found = predict(load_classifier(model, device="cpu"), texts, FP32)
    return float(np.mean([one.labels == (label,) for one, label in zip(found, labels, strict=True)]))


def test_learns_and_loads_with_plain_transformers(trained: Path, labelled: Path) -> None:
    from transformers import pipeline

    texts, labels = texts_of(labelled)
    assert accuracy_of(trained, texts, labels) > 0.95
    theirs = pipeline("text-classification", str(trained), top_k=None, device="cpu")(texts, batch_size=7)
    ours = predict(load_classifier(trained, device="cpu"), texts, FP32)
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.labels == (its[0]["label"],)
        named = {one["label"]: one["score"] for one in its}
        assert mine.probabilities.tolist() == pytest.approx([named["animal"], named["vehicle"]], abs=1e-5)
    described = json.loads((trained / "run.json").read_text())
    assert described["dev_best"] > 0.9
    assert described["options"]["learning_rate"] == 3e-3
    settings = read_config(trained)
    assert (settings.labels, settings.max_length) == (["animal", "vehicle"], 48)
    assert json.loads((trained / "tokenizer_config.json").read_text())["model_max_length"] == 48


@pytest.mark.parametrize("layers", [1, 2])
def test_pooled_heads_load_with_sentence_transformers(tiny: Path, labelled: Path, tmp_path: Path, layers: int) -> None:
    from sentence_transformers import CrossEncoder

    made = train_classifier(tiny, data_of(labelled), tmp_path / "out", options(head="pooled", head_layers=layers))
    texts, labels = texts_of(labelled)
    assert accuracy_of(made, texts, labels) > 0.9
    loaded = CrossEncoder(str(made), device="cpu").eval()
    theirs = loaded(loaded.preprocess(texts))["scores"].softmax(dim=1).detach().numpy()
    ours = np.stack([one.probabilities for one in predict(load_classifier(made, device="cpu"), texts, FP32)])
    assert np.allclose(theirs, ours, atol=1e-5)


def test_pairs(tiny: Path, pairs: Path, tmp_path: Path) -> None:
    made = train_classifier(tiny, data_of(pairs), tmp_path / "out", options(epochs=6))
    rows = [json.loads(line) for line in (pairs / "dev.jsonl").read_text().splitlines()]
    texts = [(row["premise"], row["hypothesis"]) for row in rows]
    assert accuracy_of(made, texts, [str(row["label"]) for row in rows]) > 0.95
    with pytest.raises(DataError, match="takes pairs of texts, text 1 is a single text"):
        predict(load_classifier(made, device="cpu"), ["a dog"], FP32)


def test_any_number_of_labels(tiny: Path, several: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    # an encoder of random numbers has nothing that a probe could begin with
    chosen = options(multi_label=True, epochs=50, learning_rate=3e-3, patience=0, head_start="random")
    made = train_classifier(tiny, data_of(several, multi_label=True), tmp_path / "out", chosen)
    rows = [json.loads(line) for line in (several / "dev.jsonl").read_text().splitlines()]
    texts = ["the red dog", *(row["text"] for row in rows)]
    found = predict(load_classifier(made, device="cpu"), texts, FP32)
    right = [one.labels == tuple(sorted(row["label"])) for one, row in zip(found[1:], rows, strict=True)]
    assert np.mean(right) > 0.5  # exactly right; one of eight by chance
    theirs = pipeline("text-classification", str(made), top_k=None, device="cpu")(["the red dog"])[0]
    assert {one["label"]: one["score"] for one in theirs}["red"] == pytest.approx(
        float(found[0].probabilities[2]), abs=1e-5
    )


def test_few_texts_a_class(tiny: Path, labelled: Path, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    data = sample_per_class(data_of(labelled), options(per_class=8))
    assert [data.train.labels.count((number,)) for number in (0, 1)] == [8, 8]
    made = train_classifier(
        tiny, data, tmp_path / "out", options(few_shot=True, epochs=2, learning_rate=1e-3, head="auto")
    )
    texts, labels = texts_of(labelled)
    assert accuracy_of(made, texts, labels) > 0.9
    assert not (tmp_path / "out.encoder").exists()
    # the head is scikit-learn's, on the embeddings that the model has inside
    classifier = load_classifier(made, device="cpu")
    body = torch.nn.Sequential(*list(classifier.model)[:-1])

    def embed(some: list[str]) -> Any:
        return body(classifier.model.preprocess(some))["sentence_embedding"].detach().numpy()

    fitted = LogisticRegression(max_iter=2000)
    fitted.fit(embed([str(text) for text in data.train.texts]), [own[0] for own in data.train.labels])
    found = np.stack([one.probabilities for one in predict(classifier, texts, FP32)])
    assert np.allclose(found, fitted.predict_proba(embed(texts)), atol=1e-3)
    with pytest.raises(UsageError, match="loss goes with a head that is tuned; .*\nanchor goes with a head"):
        train_classifier(tiny, data, tmp_path / "other", options(few_shot=True, loss="focal", anchor=1.0))


def test_seeds_and_folds(cli: Cli, tiny: Path, labelled: Path, tmp_path: Path) -> None:
    said = cli("classify", "train", labelled, "-m", tiny, "-o", tmp_path / "seeds", "--seeds", "1,2", *CLI)
    assert "spread (sd)" in said.output
    described = json.loads((tmp_path / "seeds/run.json").read_text())
    values = [described["runs"][f"seed-{seed}"]["test accuracy"] for seed in (1, 2)]
    assert described["mean"]["test accuracy"] == pytest.approx(np.mean(values))
    assert described["spread"]["test accuracy"] == pytest.approx(np.std(values, ddof=1))
    texts, labels = texts_of(labelled)
    assert accuracy_of(tmp_path / "seeds/seed-1", texts, labels) == pytest.approx(values[0], abs=0.03)  # bf16
    data = data_of(labelled)
    runs = fold_runs(data, options(), 3)
    held = [text for fold, _ in runs.values() for text in fold.dev.texts]
    assert sorted(map(str, held)) == sorted(map(str, [*data.train.texts, *data.dev.texts]))
    for fold, _ in runs.values():
        assert not set(fold.dev.texts) & set(fold.train.texts)
        assert abs(np.mean([own == (0,) for own in fold.dev.labels]) - 0.5) < 0.1
    with pytest.raises(UsageError, match="folds=500: allowed are 2 to"):
        fold_runs(data, options(), 500)
    assert (
        "--seeds or --folds?"
        in cli(
            "classify", "train", labelled, "-m", tiny, "-o", tmp_path / "x", "--seeds", "1,2", "--folds", 2, code=2
        ).output
    )


def test_same_seed_same_bytes_and_resumed_is_uninterrupted(tiny: Path, labelled: Path, tmp_path: Path) -> None:
    data, chosen = data_of(labelled), options(save_steps=3)
    whole = train_classifier(tiny, data, tmp_path / "whole", chosen)

    class Stopped(Exception):
        """As a crash would end it."""

    def stop(step: int, _value: float) -> None:
        if step > 0:
            raise Stopped

    with pytest.raises(Stopped):
        train_classifier(tiny, data, tmp_path / "cut", chosen, report=stop)
    assert not (tmp_path / "cut").exists()
    resumed = train_classifier(tiny, data, tmp_path / "cut", chosen, resume=True)
    assert hash_path(resumed / "model.safetensors") == hash_path(whole / "model.safetensors")


def test_a_classifier_of_the_same_labels_keeps_its_head(trained: Path, labelled: Path, tmp_path: Path) -> None:
    names = ["animal", "vehicle"]
    same = make_classifier(trained, names, options(), "cpu").state_dict()
    other = make_classifier(trained, ["a", "b"], options(), "cpu").state_dict()
    loaded = load_classifier(trained, device="cpu").model.state_dict()
    head = "0.model.classifier.weight"
    assert torch.equal(same[head], loaded[head])
    assert not torch.equal(other[head], loaded[head])
    wider = make_classifier(trained, ["a", "b", "c"], options(), "cpu")
    assert wider.state_dict()[head].shape[0] == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "focal"},
        {"loss": "focal", "focal_gamma": 4.0},
        {"class_weights": "balanced"},
        {"label_smoothing": 0.2},
        {"anchor": 1.0},
        {"head_learning_rate": 1e-2},
        {"head_dropout": 0.5},
        {"freeze_encoder": True},
        {"freeze_layers": 1},
        {"layer_decay": 0.5},
        {"reinit_layers": 1},
        {"truncation": "head+tail", "max_length": 8},
        {"max_length": 8},
        {"lora": 2},
        {"seed": 5},
        {"accumulate": 2},
    ],
    ids=str,
)
def test_every_option_changes_something(tiny: Path, labelled: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    common = {"epochs": 1, "batch_size": 8}
    data = data_of(labelled)
    rows = [row for row in range(60) if data.train.labels[row] == (0,) or row % 2]
    long = [f"{data.train.texts[row]} and so on {data.train.texts[row - 1]} beside the river" for row in rows]
    uneven = LabelledTexts([*long], [data.train.labels[row] for row in rows], [1.0] * len(rows))
    data = ClassifierData(uneven, data.dev.at(range(8)), None, data.names, False, "x")
    plain = train_classifier(tiny, data, tmp_path / "plain", options(**common))
    changed = train_classifier(tiny, data, tmp_path / "changed", options(**common, **changes))
    assert hash_path(plain / "model.safetensors") != hash_path(changed / "model.safetensors")
    if "freeze_encoder" in changes:
        from safetensors.torch import load_file

        before, after = (load_file(one / "model.safetensors") for one in (tiny, changed))
        assert all(torch.equal(before[name], after[f"bert.{name}"]) for name in before)


def test_losses_are_pytorchs() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 2, 1, 1, 0, 2])
    hot, ones = torch.eye(3)[labels], torch.ones(3)
    mean = torch.nn.functional.cross_entropy
    assert torch.allclose(label_loss(logits, hot, options(), ones).mean(), mean(logits, labels))
    smooth = label_loss(logits, hot, options(label_smoothing=0.1), ones).mean()
    assert torch.allclose(smooth, mean(logits, labels, label_smoothing=0.1))
    weights = torch.tensor([1.0, 2.0, 3.0])
    weighted = label_loss(logits, hot, options(), weights).sum() / weights[labels].sum()
    assert torch.allclose(weighted, mean(logits, labels, weight=weights))
    focal = label_loss(logits, hot, options(loss="focal", focal_gamma=0.0), ones)
    assert torch.allclose(focal, mean(logits, labels, reduction="none"))
    likely = logits.softmax(1)[torch.arange(6), labels]
    slow = [-((1 - one) ** 2) * one.log() for one in likely]
    assert torch.allclose(label_loss(logits, hot, options(loss="focal"), ones), torch.stack(slow))
    many = torch.randint(0, 2, (6, 3)).float()
    binary = torch.nn.BCEWithLogitsLoss(pos_weight=weights)(logits, many)
    assert torch.allclose(label_loss(logits, many, options(multi_label=True), weights).mean(), binary)


def test_balanced_weights_are_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = [0, 0, 0, 1, 2, 2]
    data = LabelledTexts(list("abcdef"), [(one,) for one in labels], [1.0] * 6)
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert class_weights(data, 3, options(class_weights="balanced")).tolist() == pytest.approx(theirs.tolist())


def test_batches_give_every_text_once_an_epoch() -> None:
    batches = ShuffledBatches(21, 5, seed=1, least=2)
    first = list(batches)
    assert len(first) == len(batches) == 4
    assert sorted(row for batch in first for row in batch) == list(range(21))
    batches.set_epoch(1)
    assert list(batches) != first


def test_long_texts_keep_their_ends(tiny: Path) -> None:
    model = make_classifier(tiny, ["a", "b"], options(max_length=10), "cpu")
    text = " ".join(WORDS[:40])
    [kept] = keep_ends(model, [text])
    assert kept == " ".join([*WORDS[:2], *WORDS[34:40]])
    assert keep_ends(model, ["red apple", kept]) == ["red apple", kept]
    assert Tokens(model, [text], "head+tail").lengths == [10]
    ids = Tokens(model, [text], "head").features([0])["input_ids"][0]
    assert model.tokenizer.decode(ids[1:-1]) == " ".join(WORDS[:8])


def test_head_parameters_are_those_that_are_not_the_encoders(tiny: Path) -> None:
    native = make_classifier(tiny, ["a", "b"], options(), "cpu")
    assert head_parameters(native) == ["0.model.classifier.weight", "0.model.classifier.bias"]
    pooled = make_classifier(tiny, ["a", "b"], options(head="pooled", head_layers=2), "cpu")
    assert len(head_parameters(pooled)) == 4


def test_one_file_is_split_and_the_same_text_is_in_one_part(labelled: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (labelled / "train.jsonl").read_text().splitlines()]
    file = write_lines(tmp_path / "all.jsonl", [*rows, *rows])
    data = data_of(file)
    found = (data.train, data.dev, data.test or LabelledTexts())
    sizes = [len(part) for part in found]
    assert sum(sizes) == 2 * len(rows)
    assert 0.6 < sizes[0] / sum(sizes) < 0.8
    parts = [set(part.texts) for part in found]
    assert len(set.union(*parts)) == sum(map(len, parts))


def test_texts_of_dev_are_left_out_of_train(labelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(labelled, tmp_path / "data")
    (tmp_path / "data/test.jsonl").rename(tmp_path / "data/dev.jsonl")
    dev = {text.lower() for text in texts_of(labelled)[0]}
    data = data_of(tmp_path / "data")
    assert not {str(text).lower() for text in data.train.texts} & dev
    assert "texts of train are also in dev and are left out of train" in caplog.text


def test_predictions_are_calibrated_by_a_temperature_of_dev(trained: Path, labelled: Path) -> None:
    texts, _ = texts_of(labelled)
    classifier = load_classifier(trained, device="cpu")
    plain = predict(classifier, texts, FP32)
    changed = predict(classifier, texts, FP32.model_copy(update={"calibrated": True}))
    assert [one.labels for one in plain] == [one.labels for one in changed]
    odds = [np.log(one[0].probabilities[0] / one[0].probabilities[1]) for one in zip(plain, strict=True)]
    scaled = [np.log(one.probabilities[0] / one.probabilities[1]) for one in changed]
    ratio = np.median(np.array(odds) / np.array(scaled))
    assert ratio == pytest.approx(classifier.settings.temperature, rel=0.05)


def test_one_class_alone_is_not_ranked(trained: Path) -> None:
    texts = LabelledTexts(["the red dog runs", "a big cat"], [(0,), (0,)], [1.0, 1.0])
    judged = judge_classifier(load_classifier(trained, device="cpu"), texts, FP32)
    assert not {one["metric"] for one in judged["scores"]} & {"AUC", "AP"}


def test_cleaning_of_the_training_is_that_of_predictions(trained: Path) -> None:
    classifier = load_classifier(trained, device="cpu")
    plain, messy = predict(classifier, ["the red dog sings", "the  <b>red</b> dog\u200b sings"], FP32)
    assert np.array_equal(plain.probabilities, messy.probabilities)


def test_the_command_line_from_data_to_predictions(cli: Cli, tiny: Path, labelled: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    said = cli("classify", "train", labelled, "-m", tiny, "-o", model, *CLI)
    assert "dev accuracy" in said.output
    file = write_lines(tmp_path / "new.jsonl", [{"id": 7, "text": "the red dog runs"}, {"text": "a blue boat sails"}])
    lines = [json.loads(line) for line in cli("classify", "predict", model, file).stdout.splitlines()]
    assert [line["predicted"] for line in lines] == ["animal", "vehicle"]
    assert lines[0]["id"] == 7
    assert sum(lines[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    out = tmp_path / "out.csv"
    said = cli("classify", "predict", model, file, "--format", "csv", "-o", out)
    assert said.stdout == f"{out}: 2 texts predicted (animal 1, vehicle 1)\n"
    with out.open(newline="") as opened:
        table = list(csv.DictReader(opened))
    assert [row["predicted"] for row in table] == ["animal", "vehicle"]
    assert float(table[0]["p_animal"]) > 0.5
    plain = tmp_path / "lines.txt"
    plain.write_text("the red dog runs\n\na blue boat sails\n")
    assert len(cli("classify", "predict", model, plain).stdout.splitlines()) == 2
    judged = cli("classify", "evaluate", model, labelled, "-o", tmp_path / "judged", "--encoder", tiny)
    assert "accuracy of the probe" in judged.output
    found = json.loads((tmp_path / "judged/judgement.json").read_text())
    assert {one["metric"] for one in found["scores"]} >= {"accuracy", "macro-F1", "AUC", "AP", "calibration error"}
    assert len(found["frozen"]) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "red", "label": "a"}] * 3, "all texts have the label 'a'; a classifier needs two or more"),
        ([{"text": "", "label": "a"}], r"train.jsonl:1: 'text' is empty"),
        ([{"text": "red", "kind": "a"}], "can't tell what the columns are: found text, kind"),
        ([{"text": "red"}], "label"),
        ([{"query": "red", "pos": ["green"]}], "row 1 is no labelled text; expected text and label"),
        ([{"text": "red", "label": None}], "'label' must be a text or a whole number"),
    ],
)
def test_bad_data(tmp_path: Path, rows: list[dict[str, object]], message: str) -> None:
    write_lines(tmp_path / "data/train.jsonl", rows)
    with pytest.raises(DataError, match=message):
        data_of(tmp_path / "data")


def test_labels_that_train_does_not_have(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"text": f"red {n}", "label": "good" if n % 2 else "bad"} for n in range(9)])
    write_lines(tmp_path / "dev.jsonl", [{"text": "blue", "label": "godo"}])
    with pytest.raises(DataError, match=r"\(dev\): unknown label 'godo' of 'blue'. Did you mean 'good'"):
        data_of(tmp_path)


def test_lists_of_labels_need_multi_label(several: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match="an empty list of labels, which goes only with multi_label"):
        data_of(several)
    rows = [{"text": f"red {n}", "label": ["a", "b"] if n % 2 else ["a"]} for n in range(20)]
    write_lines(tmp_path / "train.jsonl", rows)
    assert data_of(tmp_path).names == ["a", "a|b"]
    assert "labels hold '|'" in caplog.text
    assert data_of(tmp_path, multi_label=True).names == ["a", "b"]
    write_lines(tmp_path / "train.jsonl", [{"text": "red", "label": ["a|b"]}])
    with pytest.raises(DataError, match=r"train.jsonl:1: labels of 'label' are texts without '\|'"):
        data_of(tmp_path, multi_label=True)


def test_wrong_use(tiny: Path, trained: Path, labelled: Path, tmp_path: Path, cli: Cli) -> None:
    data = data_of(labelled)
    with pytest.raises(UsageError, match="focal_gamma goes with loss=focal\nthreshold goes with multi_label"):
        train_classifier(tiny, data, tmp_path / "out", options(focal_gamma=1.0, threshold=0.4))
    with pytest.raises(UsageError, match="head_layers goes with head=pooled"):
        train_classifier(tiny, data, tmp_path / "out", options(head_layers=2))
    with pytest.raises(UsageError, match="doesn't say how it pools"):
        train_classifier(trained, data, tmp_path / "out", options(head="pooled"))
    with pytest.raises(DataError, match="is a classifier and no encoder"):
        load_encoder(trained)
    with pytest.raises(DataError, match="is no classifier: it has no classification head"):
        load_classifier(tiny)
    broken = tmp_path / "broken"
    shutil.copytree(trained, broken)
    settings = json.loads((broken / "classifier.json").read_text())
    (broken / "classifier.json").write_text(json.dumps({**settings, "labels": ["a", "b", "c"]}))
    with pytest.raises(DataError, match="the head has 2 classes, 3 are named"):
        load_classifier(broken, device="cpu")
    (broken / "model.safetensors").write_bytes(b"cut off")
    (broken / "classifier.json").write_text(json.dumps(settings))
    with pytest.raises(CocktailError, match="can't be loaded"):
        load_classifier(broken, device="cpu")
    assert "Did you mean 'predict'" in " ".join(cli("classify", "predikt", code=2).output.split())
    assert "no such file" in cli("classify", "predict", trained, tmp_path / "none.txt", code=1).output
    twice = tmp_path / "twice.jsonl"
    write_lines(twice, [{"text": " "}])
    assert f"{twice}:1: 'text' is empty" in cli("classify", "predict", trained, twice, code=1).output
    assert not (tmp_path / "out").exists()


def test_a_downloaded_classifier_without_our_settings(trained: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(trained, plain)
    (plain / "classifier.json").unlink()
    settings = read_config(plain)
    assert settings == ClassifierConfig(labels=["animal", "vehicle"], max_length=48)
    [found] = predict(load_classifier(plain, device="cpu"), ["the red dog runs"], FP32)
    assert found.labels == ("animal",)


def test_a_loss_that_is_no_number_keeps_its_batch(tiny: Path, labelled: Path, tmp_path: Path) -> None:
    chosen = options(learning_rate=0.99, optimizer="sgd", max_grad_norm=1e30, weight_decay=1e20)
    with pytest.raises(CocktailError, match="the loss is (nan|inf)"):
        train_classifier(tiny, data_of(labelled), tmp_path / "out", chosen)
    kept = [json.loads(line) for line in (tmp_path / "out.unfinished/bad_batch.jsonl").read_text().splitlines()]
    assert kept
    assert set(kept[0]) == {"text", "label"}


@pytest.mark.parametrize("kind", ["single", "pairs"])
def test_varied_copies_of_train(kind: str, labelled: Path, pairs: Path, tmp_path: Path) -> None:
    folder = labelled if kind == "single" else pairs
    data = data_of(folder)
    chosen = options(augment="swap,delete", augment_share=1.0)
    varied = with_augmented(data, chosen)
    assert with_augmented(data, chosen).train == varied.train
    assert with_augmented(data, options()) is data
    assert varied.dev is data.dev
    held = {str(text) for text in data.dev.texts}
    originals = list(zip(data.train.texts, data.train.labels, strict=True))
    rows = list(zip(varied.train.texts, varied.train.labels, strict=True))
    following = iter(rows)
    assert all(row in following for row in originals)
    copies = [(text, labels) for text, labels in rows if text not in set(data.train.texts)]
    assert len(copies) > 20
    assert not {str(text) for text, _ in copies} & held
    place = {text: number for number, text in enumerate(varied.train.texts)}
    for text, labels in copies:
        before = varied.train.texts[place[text] - 1]
        assert varied.train.labels[place[text] - 1] == labels
        words = [set((one if isinstance(one, str) else one[0]).split()) for one in (text, before)]
        assert words[0] <= words[1]
        assert isinstance(text, str) or text[1] == before[1]


def test_augmentation_is_trained_on(tiny: Path, labelled: Path, cli: Cli, tmp_path: Path) -> None:
    more = ("--augment", "swap", "--augment-share", 1)
    cli("classify", "train", labelled, "-m", tiny, "-o", tmp_path / "out", *CLI, *more)
    described = json.loads((tmp_path / "out/run.json").read_text())
    assert described["texts"]["train"] > len(data_of(labelled).train)
    result = cli("classify", "train", labelled, "-m", tiny, "-o", tmp_path / "no", *CLI, "--augment", "swop", code=2)
    assert "Did you mean 'swap'" in result.stderr


def test_a_search_of_a_classifier(tiny: Path, labelled: Path, cli: Cli, tmp_path: Path) -> None:
    command = (
        "classify",
        "train",
        labelled,
        "-m",
        tiny,
        "-o",
        tmp_path / "out",
        *CLI,
        "--trials",
        3,
        "--learning-rate",
        5e-4,
    )
    result = cli(*command, "--search", "learning_rate,epochs", "--format", "json")
    found = json.loads(result.stdout)
    assert len(found["trials"]) == 3
    assert found["trials"][0]["learning_rate"] == 5e-4
    best = max(found["trials"], key=lambda one: one["dev"] or 0)
    described = json.loads((tmp_path / "out/run.json").read_text())
    assert described["dev_best"] == pytest.approx(best["dev"])
    assert described["search"]["best"] == found["best"]
    assert (tmp_path / "out/search.png").read_bytes()[:4] == b"\x89PNG"
    assert load_classifier(tmp_path / "out").settings.labels == ["animal", "vehicle"]
    assert not (tmp_path / "out.search").exists()
    few = ("classify", "train", labelled, "-m", tiny, "-o", tmp_path / "few", "--few-shot", "--per-class", 4)
    result = cli(*few, "--epochs", 1, "--device", "cpu", "--search", "pairs_per_text", "--trials", 2)
    assert "dev accuracy" in result.stdout
    for wrong, words in (("learning_rat", "Did you mean"), ("epochs", "--seeds or --search?")):
        more = ("--seeds", "1,2") if wrong == "epochs" else ()
        assert words in cli(*command, "--search", wrong, *more, "--overwrite", code=2).stderr
