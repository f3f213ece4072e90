"""The probe that a head begins with: equal to scikit-learn's, put into the head, and never fallen below."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from bge_cocktail.data.labelled import LabelledTexts
from bge_cocktail.data.sources import Source
from bge_cocktail.options import ClassifyOptions, PredictOptions
from bge_cocktail.training.classifier.data import ClassifierData, read_class_data
from bge_cocktail.training.classifier.model import make_classifier
from bge_cocktail.training.classifier.predict import logits_of
from bge_cocktail.training.classifier.probe import begin_with_probe, fit_logistic, last_layer
from bge_cocktail.training.classifier.train import train_classifier

Cli = Callable[..., Result]
FP32 = PredictOptions(device="cpu", precision="fp32")
FAST: dict[str, Any] = {"epochs": 1, "batch_size": 16, "device": "cpu", "precision": "fp32"}


def options(**changes: object) -> ClassifyOptions:
    return ClassifyOptions.model_validate({**FAST, **changes})


@pytest.fixture(scope="module")
def data(labelled: Path) -> ClassifierData:
    read = read_class_data(Source(str(labelled)), options())
    return replace(read, test=read.dev)


@given(classes=st.integers(2, 4), seed=st.integers(0, 100))
def test_its_logits_are_those_of_scikit_learn(classes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    known = generator.normal(size=(40, 5)).astype(np.float32)
    labels = [*range(classes), *generator.integers(classes, size=40 - classes).tolist()]
    texts = LabelledTexts([str(row) for row in range(40)], [(label,) for label in labels], [1.0] * 40)
    weight, bias = fit_logistic(known, texts, classes, options())
    theirs = LogisticRegression(max_iter=2000).fit(known, labels).predict_proba(known)
    logits = known @ weight.T + bias
    ours = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose(ours, theirs, atol=1e-5)


def test_a_class_without_texts_is_not_predicted() -> None:
    known = np.eye(4, dtype=np.float32)
    texts = LabelledTexts(list("abcd"), [(0,), (2,), (0,), (2,)], [1.0] * 4)
    weight, bias = fit_logistic(known, texts, 3, options())
    assert set((known @ weight.T + bias).argmax(axis=1).tolist()) == {0, 2}
    several = LabelledTexts(list("abcd"), [(0,), (0, 2), (0,), (0, 2)], [1.0] * 4)
    weight, bias = fit_logistic(known, several, 3, options(multi_label=True), strength=100)
    assert ((known @ weight.T + bias) > 0).tolist() == [[True, False, row in (1, 3)] for row in range(4)]


@pytest.mark.parametrize("head", ["cls", "pooled"])
def test_the_head_begins_as_the_probe(tiny: Path, data: ClassifierData, head: str) -> None:
    chosen = options(head=head)
    model = make_classifier(tiny, data.names, chosen, "cpu")
    before = last_layer(model).weight.detach().clone()
    found = begin_with_probe(model, data, chosen, FP32)
    logits = logits_of(model, data.dev.texts, "head", FP32)
    right = [int(guess) in own for guess, own in zip(logits.argmax(axis=1), data.dev.labels, strict=True)]
    assert np.mean(right) == found["dev"]["accuracy"] == found["test"]["accuracy"]
    assert not np.allclose(before, last_layer(model).weight.detach())
    # it is asked about, though the head begins with random numbers
    other = make_classifier(tiny, data.names, options(head=head, head_start="random"), "cpu")
    assert begin_with_probe(other, data, options(head=head, head_start="random"), FP32) == found
    assert np.array_equal(last_layer(other).weight.detach(), before)


def test_a_tuning_that_harms_gives_the_probe_back(tiny: Path, data: ClassifierData, tmp_path: Path) -> None:
    harmful = options(learning_rate=0.5, head="pooled", warmup=0, max_grad_norm=1e9)
    folder = train_classifier(tiny, data, tmp_path / "out", harmful)
    run = json.loads((folder / "run.json").read_text())
    assert run["best_step"] == 0
    assert run["dev_best"] == run["probe"]["dev"]["accuracy"] > 0.5
    assert run["test"]["accuracy"] == run["probe"]["test"]["accuracy"]


def test_the_probe_is_shown_beside(cli: Cli, tiny: Path, labelled: Path, tmp_path: Path) -> None:
    shown = cli(
        "classify", "train", labelled, "-m", tiny, "-o", tmp_path / "out", "--epochs", 1, "--device", "cpu"
    ).stdout
    assert "dev accuracy of the probe" in shown
    described = json.loads((tmp_path / "out/run.json").read_text())
    assert described["options"]["head"] == "auto"
    assert (tmp_path / "out/modules.json").is_file()  # pooled, as the encoder pools
