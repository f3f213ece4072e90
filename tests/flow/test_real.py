"""The real MiniLM: known numbers, and what the demo's data must be."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, cpu_seconds, slowness

from bge_cocktail.data.beir import read_beir
from bge_cocktail.data.labelled import DataFolder, read_labelled
from bge_cocktail.data.record import normalise
from bge_cocktail.flow.demo import demo_data, demo_model, demo_run
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.options import EncodeOptions


@pytest.mark.real
def test_embeddings_equal_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    texts = [json.loads(line)["text"] for line in (ROOT / "data/topics/test.jsonl").read_text().splitlines()[:48]]
    expected = SentenceTransformer(str(demo_model()), device="cpu").encode(texts)
    ours = CachedEncoder(demo_model(), EncodeOptions(device="cpu")).encode_text(texts)
    assert np.abs(ours - expected).max() < 1e-5
    halves = CachedEncoder(demo_model(), EncodeOptions(device="cpu", precision="bf16")).encode_text(texts)
    assert np.sum(halves * expected, axis=1).min() > 0.9995


@pytest.mark.real
def test_a_merge_of_the_real_model_with_itself(tmp_path: Path) -> None:
    import shutil

    from bge_cocktail.merging.merge import merge
    from bge_cocktail.options import MergeOptions

    copy = shutil.copytree(demo_model(), tmp_path / "copy")
    merge([demo_model(), copy], tmp_path / "out", MergeOptions(weights=[0.3, 0.7]))
    from safetensors.numpy import load_file

    one, two = (load_file(path / "model.safetensors") for path in (demo_model(), tmp_path / "out"))
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    texts = ["the kiln is cold", "who signs the form?"]
    assert np.array_equal(
        CachedEncoder(tmp_path / "out").encode_text(texts), CachedEncoder(demo_model()).encode_text(texts)
    )


@pytest.mark.real
def test_a_merge_of_two_minilms_costs_under_a_second_of_cpu(tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(demo_model(), tmp_path / "copy")
    merge = ["-m", "bge_cocktail", "merge", str(demo_model()), str(copy), "-o", str(tmp_path / "out"), "--overwrite"]
    assert cpu_seconds(*merge) < 1 * slowness()


def test_the_demo_is_a_run_like_any_other(tmp_path: Path) -> None:
    options = demo_run(tmp_path)
    assert [path.name for path in options.data.target] == ["handbook"]
    assert [path.name for path in options.data.general] == ["everyday", "sentiment", "topics"]


def test_the_demo_data_keeps_its_promises() -> None:
    data = demo_data()
    splits = {split: read_beir(data / "handbook", split) for split in ("train", "dev", "test")}
    corpus = splits["train"].corpus
    queries = {split: [normalise(text) for text in judged.queries.values()] for split, judged in splits.items()}
    everything = [text for texts in queries.values() for text in texts]
    assert len(corpus) >= 150
    assert len(everything) >= 600
    assert len(set(everything)) == len(everything)
    assert len({normalise(text) for text in corpus.values()}) == len(corpus)
    asked = {document for grades in splits["train"].qrels.values() for document in grades}
    unseen = {d for q, grades in splits["test"].qrels.items() for d in grades} - asked
    assert len(unseen) == 24
    everyday = read_beir(data / "everyday")
    assert len(everyday.corpus) >= 150
    assert len(everyday.queries) >= 300
    for name, classes in (("sentiment", 2), ("topics", 8)):
        parts = [read_labelled(DataFolder(data / name), split) for split in ("train", "test")]
        texts = [normalise(text) for part in parts for text in part.texts]
        assert len(texts) >= 300
        assert len(set(texts)) == len(texts)
        for part in parts:
            counts = Counter(part.labels)
            assert len(counts) == classes
            assert max(counts.values()) == min(counts.values())
