"""Classifiers merged: heads kept or merged by label, encoders under another's head, weights from cross-entropy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from conftest import WORDS, leftovers, perturb, write_lines
from safetensors.numpy import load_file, save_file
from test_classifying import FAST, FP32

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.data.sources import Source
from bge_cocktail.merging.merge import merge
from bge_cocktail.options import ClassifyOptions, MergeOptions
from bge_cocktail.training.classifier.data import read_class_data, read_split
from bge_cocktail.training.classifier.merge import merge_classifiers
from bge_cocktail.training.classifier.model import load_classifier
from bge_cocktail.training.classifier.predict import predict
from bge_cocktail.training.classifier.train import train_classifier

Cli = Callable[..., Result]
HEAD = ("classifier.weight", "classifier.bias")


def trained(base: Path, data: Path, folder: Path, **changes: Any) -> Path:
    options = ClassifyOptions.model_validate({**FAST, **changes})
    return train_classifier(base, read_class_data(Source(str(data)), options), folder, options)


@pytest.fixture(scope="module")
def kinds(tiny: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tiny, labelled, tmp_path_factory.mktemp("models") / "kinds")


@pytest.fixture(scope="module")
def again(tiny: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tiny, labelled, tmp_path_factory.mktemp("models") / "again", seed=5)


@pytest.fixture(scope="module")
def colours(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of other labels, three of them."""
    folder = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    rows: list[dict[str, object]] = [
        {"text": f"the {colour} {generator.choice(WORDS[10:15])} {number}", "label": colour}
        for number in range(40)
        for colour in WORDS[:3]
    ]
    write_lines(folder / "train.jsonl", rows)
    return trained(tiny, folder, tmp_path_factory.mktemp("models") / "colours")


def tensors_of(model: Path) -> dict[str, np.ndarray]:
    return load_file(model / "model.safetensors")


def relabelled(model: Path, folder: Path, order: list[int]) -> Path:
    """The same classifier with its classes in another order."""
    shutil.copytree(model, folder)
    labels = json.loads((model / "classifier.json").read_text())["labels"]
    names = [labels[number] for number in order]
    settings = json.loads((folder / "classifier.json").read_text())
    (folder / "classifier.json").write_text(json.dumps({**settings, "labels": names}))
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: row for row, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = tensors_of(model)
    save_file(
        {name: np.ascontiguousarray(one[order]) if name in HEAD else one for name, one in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def test_heads_of_equal_labels_are_merged(kinds: Path, again: Path, tmp_path: Path) -> None:
    merge([kinds, again], tmp_path / "out")
    one, other, out = tensors_of(kinds), tensors_of(again), tensors_of(tmp_path / "out")
    for name in one:
        np.testing.assert_allclose(out[name], (one[name] + other[name]) / 2, atol=1e-7)
    kept = merge([kinds, again], tmp_path / "kept", MergeOptions(heads="first")).folder
    for name, value in tensors_of(kept).items():
        # without the heads, tiles end elsewhere, and so may the last bit of a sum
        near = 0 if name in HEAD else 1e-7
        np.testing.assert_allclose(value, one[name] if name in HEAD else out[name], rtol=0, atol=near, err_msg=name)


def test_labels_in_another_order_are_the_same_labels(kinds: Path, again: Path, tmp_path: Path) -> None:
    turned = relabelled(again, tmp_path / "turned", [1, 0])
    merge([kinds, again], tmp_path / "plain")
    merge([kinds, turned], tmp_path / "out")
    plain, out = tensors_of(tmp_path / "plain"), tensors_of(tmp_path / "out")
    assert all(np.array_equal(plain[name], out[name]) for name in plain)
    # and the first one's order is what the merge has
    texts = ["the red wolf runs", "the red train stops"]
    merge([turned, kinds], tmp_path / "other")
    both = [predict(load_classifier(tmp_path / name, device="cpu"), texts, FP32) for name in ("plain", "other")]
    for mine, theirs in zip(*both, strict=True):
        assert mine.labels == theirs.labels
        np.testing.assert_allclose(mine.probabilities, theirs.probabilities[::-1], atol=1e-6)


def test_an_encoder_takes_part_under_the_head(kinds: Path, tiny: Path, tmp_path: Path) -> None:
    merge([kinds, tiny], tmp_path / "out", MergeOptions(share=0.7))
    one, base, out = tensors_of(kinds), tensors_of(tiny), tensors_of(tmp_path / "out")
    for name, value in out.items():
        bare = name.removeprefix("bert.")
        expected = one[name] if bare not in base else 0.7 * one[name] + 0.3 * base[bare]
        np.testing.assert_allclose(value, expected, atol=1e-6, err_msg=name)
    assert all(np.array_equal(out[name], one[name]) for name in HEAD)
    assert sum(name.removeprefix("bert.") in base for name in out) > 20
    # plain transformers and our loader read it
    from transformers import pipeline

    found = pipeline("text-classification", str(tmp_path / "out"), device="cpu")("the red wolf runs")
    assert found[0]["label"] == predict(load_classifier(tmp_path / "out"), ["the red wolf runs"], FP32)[0].labels[0]


def test_a_plain_encoder_needs_no_pooling_under_a_head(kinds: Path, tiny: Path, tmp_path: Path) -> None:
    plain = shutil.copytree(tiny, tmp_path / "plain", ignore=shutil.ignore_patterns("modules.json", "1_*", "2_*"))
    merge([kinds, plain], tmp_path / "out")
    merge([kinds, tiny], tmp_path / "same")
    one, other = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "same")
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_other_labels_keep_the_first_head(kinds: Path, colours: Path, tmp_path: Path) -> None:
    merge([kinds, colours], tmp_path / "out")
    out, one, other = (tensors_of(model) for model in (tmp_path / "out", kinds, colours))
    for name, value in out.items():
        expected = one[name] if name in HEAD else (one[name] + other[name]) / 2
        np.testing.assert_allclose(value, expected, atol=1e-7)
    assert load_classifier(tmp_path / "out").settings.labels == ["animal", "vehicle"]
    with pytest.raises(UsageError, match="labels"):
        merge([kinds, colours], tmp_path / "no", MergeOptions(heads="merge"))


@pytest.mark.parametrize("method", ["task-arithmetic", "ties", "dare-linear"])
def test_task_vectors_of_a_base_without_a_head(
    kinds: Path, again: Path, tiny: Path, tmp_path: Path, method: str
) -> None:
    merge([kinds, again], tmp_path / "out", MergeOptions(method=method, base=str(tiny)))
    out, one = tensors_of(tmp_path / "out"), tensors_of(kinds)
    assert all(np.array_equal(out[name], one[name]) for name in HEAD)
    if method == "task-arithmetic":
        base, other = tensors_of(tiny), tensors_of(again)
        name = "encoder.layer.0.attention.self.query.weight"
        expected = one[f"bert.{name}"] + other[f"bert.{name}"] - base[name]
        np.testing.assert_allclose(out[f"bert.{name}"], expected, atol=1e-6)


def test_cocktail_weights_are_of_the_cross_entropy(
    kinds: Path, colours: Path, tiny: Path, labelled: Path, tmp_path: Path
) -> None:
    rows = read_split(Source(str(labelled), split="test"), [])
    labels = load_classifier(kinds).settings.labels
    from bge_cocktail.data.labelled import number_labels

    examples = number_labels(rows, labels, False, "examples")
    options = MergeOptions(weights="cocktail", temperature=0.5)
    merged = merge_classifiers([kinds, colours, tiny], tmp_path / "out", options, examples=examples, device="cpu")
    # an independent oracle: transformers, with the first one's head put on each encoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(kinds)
    features = tokenizer(examples.texts, padding=True, return_tensors="pt")
    truth = torch.tensor([own[0] for own in examples.labels])
    losses = []
    for model in (kinds, colours, tiny):
        whole = AutoModelForSequenceClassification.from_pretrained(kinds).eval()
        encoder = {
            f"bert.{name.removeprefix('bert.')}": torch.from_numpy(value)
            for name, value in tensors_of(model).items()
            if name not in HEAD
        }
        missing = whole.load_state_dict(encoder, strict=False)
        assert missing.unexpected_keys == []
        with torch.no_grad():
            losses.append(float(torch.nn.functional.cross_entropy(whole(**features).logits, truth)))
    np.testing.assert_allclose(merged.losses, losses, atol=1e-4)
    powers = np.exp(-np.array(losses) / 0.5)
    np.testing.assert_allclose(merged.weights, powers / powers.sum(), atol=1e-4)
    assert losses[0] < losses[2]


def test_from_the_command_line(
    cli: Cli, kinds: Path, again: Path, colours: Path, tiny: Path, labelled: Path, tmp_path: Path
) -> None:
    options = ("--weights", "relative", "--examples", labelled, "--split", "test", "-o", tmp_path / "out")
    result = cli("merge", kinds, again, colours, tiny, *options)
    assert "loss" in result.stdout
    described = json.loads((tmp_path / "out/run.json").read_text())
    assert sum(one["weight"] for one in described["models"]) == pytest.approx(1)
    assert any("test" in name for name in described["inputs"])
    assert "text-classification" in (tmp_path / "out/README.md").read_text()
    assert "identical: True" in cli("merge", "--verify", "-o", tmp_path / "out").stdout
    judged = cli("classify", "evaluate", tmp_path / "out", labelled, "-o", tmp_path / "judged")
    assert "accuracy" in judged.stdout
    for weights in ("search", "greedy"):
        more = ("--trials", 5) if weights == "search" else ()
        where = tmp_path / weights
        found = cli("merge", kinds, again, "--weights", weights, *more, "--examples", labelled, "-o", where,
                    "--split", "test")  # fmt: skip
        assert "target" in found.stdout
    assert leftovers(tmp_path) == []


def test_a_merge_of_merges_of_classifiers(cli: Cli, kinds: Path, again: Path, tiny: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'weights = [0.5, 0.5]\n[[models]]\n[models.recipe]\nname = "inner"\n[[models.recipe.models]]\n'
        f'model = "{kinds}"\n[[models.recipe.models]]\nmodel = "{again}"\n[[models]]\nmodel = "{tiny}"\n'
    )
    cli("merge", "-r", recipe, "-o", tmp_path / "out")
    one, other, out = (tensors_of(model) for model in (kinds, again, tmp_path / "out"))
    for name in HEAD:
        np.testing.assert_allclose(out[name], (one[name] + other[name]) / 2, atol=1e-7)
    assert "identical: True" in cli("merge", "--verify", "-o", tmp_path / "out").stdout


def test_pooled_heads(tiny: Path, labelled: Path, tmp_path: Path) -> None:
    models = [trained(tiny, labelled, tmp_path / f"p{seed}", head="pooled", seed=seed) for seed in (1, 2)]
    merge(models, tmp_path / "out")
    merge([models[0], tiny], tmp_path / "with-base")
    labels, texts = ["animal", "vehicle"], ["the red wolf runs", "the red train stops"]
    for name in ("out", "with-base"):
        loaded = load_classifier(tmp_path / name, device="cpu")
        assert loaded.settings.labels == labels
        assert len(predict(loaded, texts, FP32)) == 2
    files = {model: sorted(path.relative_to(model) for path in model.rglob("*.safetensors")) for model in models}
    for file in files[models[0]]:
        one, other, out = (load_file(folder / file) for folder in (*models, tmp_path / "out"))
        for name in one:
            np.testing.assert_allclose(out[name], (one[name] + other[name]) / 2, atol=1e-7)


@pytest.mark.parametrize("method", ["regmean", "regmean++"])
def test_classifiers_measured_on_texts_of_their_own(
    cli: Cli, kinds: Path, again: Path, labelled: Path, tmp_path: Path, method: str
) -> None:
    """The inputs of each model are those of its own texts: with all texts on one side the other has no say there."""
    options = ["--method", method, "--split", "test", "--shrinkage", "1"]
    texts = write_lines(tmp_path / "one.jsonl", [{"text": "the red wolf", "label": "animal"}])
    cli("merge", kinds, again, *options, "--own-examples", labelled, "--own-examples", texts, "-o", tmp_path / "out")
    cli("merge", kinds, again, *options, "--own-examples", texts, "--own-examples", labelled, "-o", tmp_path / "turned")
    one, two, out, turned = (
        load_file(f / "model.safetensors") for f in (kinds, again, tmp_path / "out", tmp_path / "turned")
    )
    name = next(name for name in one if name.endswith("layer.0.attention.self.query.weight"))
    # many texts weigh more than one
    assert np.abs(out[name] - one[name]).mean() < np.abs(out[name] - two[name]).mean()
    assert np.abs(turned[name] - two[name]).mean() < np.abs(turned[name] - one[name]).mean()
    assert {str(labelled), str(texts)} <= {
        known.removesuffix(" (test)") for known in json.loads((tmp_path / "out/run.json").read_text())["inputs"]
    }


def test_calibration_is_forgotten(kinds: Path, again: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = json.loads((kinds / "classifier.json").read_text())
    assert settings["temperature"] != 1.0
    merge([kinds, again], tmp_path / "out")
    assert json.loads((tmp_path / "out/classifier.json").read_text()) == {**settings, "temperature": 1.0}
    assert "calibration" in caplog.text


@pytest.mark.parametrize(
    ("models", "options", "words"),
    [
        (["tiny", "kinds"], [], "is a classifier"),
        (["tiny", "tiny2"], ["--heads", "first"], "--heads does nothing"),
        (["kinds", "again"], ["--weights", "cocktail"], "need examples"),
        (["kinds", "again"], ["--weights", "gradient", "--examples", "{data}", "--split", "test"], "take cocktail"),
        (["kinds", "again"], ["--method", "fisher", "--examples", "{data}", "--split", "test"], "measures encoders"),
        (["kinds", "again"], ["--method", "regmean"], "needs examples"),
        (["kinds", "again"], ["--own-examples", "{data}"], "methods that measure each model"),
        (
            ["kinds", "again"],
            ["--method", "regmean++", "--own-examples", "{data}", "--split", "test"],
            "1 --own-examples for 2 models: give one for each",
        ),
        (
            ["kinds", "again"],
            [
                *("--method", "regmean", "--weights", "cocktail", "--split", "test"),
                *("--own-examples", "{data}", "--own-examples", "{data}"),
            ],
            "need labelled texts",
        ),
        (["kinds", "again"], ["--target", "{data}", "--weights", "search"], "looks at --examples"),
        (
            ["kinds", "again"],
            ["--weights", "cocktail", "--examples", "{data}", "--query-prompt", "q: "],
            "--query-prompt",
        ),
        (["kinds", "tiny"], ["--heads", "merge"], "has no head"),
    ],
)
def test_refusals(
    cli: Cli, request: pytest.FixtureRequest, tmp_path: Path, models: list[str], options: list[str], words: str
) -> None:
    tiny: Path = request.getfixturevalue("tiny")
    data = request.getfixturevalue("labelled")
    found = [
        perturb(tiny, tmp_path / "tiny2", 1, scale=0.01) if name == "tiny2" else request.getfixturevalue(name)
        for name in models
    ]
    result = cli("merge", *found, *(one.format(data=data) for one in options), "-o", tmp_path / "out", code=2)
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_labels_that_the_classifier_does_not_have(cli: Cli, kinds: Path, again: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "texts.jsonl", [{"text": "the red wolf", "label": "anmal"}])
    options = ("--weights", "cocktail", "--examples", file, "-o", tmp_path / "out")
    result = cli("merge", kinds, again, *options, code=1)
    assert "unknown label 'anmal'" in result.stderr
    assert "animal" in result.stderr


def test_encoders_of_another_form_are_refused(kinds: Path, tiny: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    with pytest.raises(DataError, match="hidden_act"):
        merge([kinds, other], tmp_path / "out")


def test_inspect_looks_under_one_head(
    cli: Cli, kinds: Path, colours: Path, again: Path, tiny: Path, tmp_path: Path
) -> None:
    result = cli("inspect", kinds, colours, again, "--base", tiny, "--format", "json")
    found = json.loads(result.stdout)
    assert len(found["pairs"]) == 6
    assert all(not pair["refused"] for pair in found["pairs"])
    assert all(value > 0 for row in found["moved"] for value in row[:-1])
    other = shutil.copytree(tiny, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    found = json.loads(cli("inspect", kinds, other, "--format", "json").stdout)
    assert "hidden_act" in " ".join(found["pairs"][0]["refused"])
