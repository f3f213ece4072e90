"""Exports: the same embeddings in another program, judged before anything is written, refused where they lose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from conftest import build_model, leftovers, perturb, write_lines
from safetensors.numpy import load_file, save_file

from bge_cocktail.core.errors import CocktailError, DataError, UsageError
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.models.prompts import set_prompts
from bge_cocktail.options import EncodeOptions, ExportOptions, ServeOptions
from bge_cocktail.serving.export import ExportReport, Refused, ScoreChange, export, refuse_loss
from bge_cocktail.serving.graph import best_scales, within_cosine
from bge_cocktail.serving.runtime import BackendEncoder, open_backend

Cli = Callable[..., Result]
TEXTS = ["where is the red fox", "a blue car in the street", "boat", "the fox and the car are under the tree " * 9]


@pytest.fixture(scope="module")
def prompted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("export") / "prompted")
    set_prompts(folder, {"query": "what is ", "document": "the text: "})
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts enough that a score has an interval."""
    folder = tmp_path_factory.mktemp("task") / "animals"
    words = ["red", "blue", "green", "fox", "car", "boat", "tree", "street", "house", "river", "day", "night"]
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        text = " ".join(rng.choice(words, 8))
        rows.append({"query": f"{text} {number}", "pos": [f"{text} here {number}"]})
    folder.mkdir()
    write_lines(folder / "test.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def exported(prompted: Path, task: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("exported")
    for form in ("onnx", "onnx-int8", "openvino", "openvino-int8"):
        options = ExportOptions(to=form, max_loss=0.2)  # type: ignore[arg-type]
        # one of each runtime is judged, the others are calibrated on texts and compared below
        judged = form in ("onnx", "openvino-int8")
        export(prompted, place / form, options, target=[task] if judged else [], texts=TEXTS, judge=judged)
    return {path.name: path for path in place.iterdir()}


# what int8 may change of a model whose weights are random: the real ones are measured by scripts/bench_export.py
LEAST = {"onnx": 0.99999, "openvino": 0.999, "onnx-int8": 0.97, "openvino-int8": 0.98}


@pytest.mark.parametrize("form", LEAST)
def test_an_export_embeds_as_the_model(exported: dict[str, Path], prompted: Path, form: str) -> None:
    encoder = CachedEncoder(prompted, EncodeOptions(cache=False))
    served = BackendEncoder(open_backend(exported[form], ServeOptions()))
    for one, two in (
        (encoder.encode_query(TEXTS), served.encode_query(TEXTS)),
        (encoder.encode_document(TEXTS), served.encode_document(TEXTS)),
        (encoder.encode_text(TEXTS), served.encode_text(TEXTS)),
    ):
        assert (one * two).sum(axis=1).min() >= LEAST[form]
        assert np.allclose(np.linalg.norm(two, axis=1), 1, atol=1e-5)


def test_onnxruntime_alone_reads_it(exported: dict[str, Path], prompted: Path) -> None:
    """With the tokenizer beside the graph, which cuts and pads, and nothing of ours."""
    import onnx
    import onnxruntime
    from tokenizers import Tokenizer

    folder = exported["onnx"]
    onnx.checker.check_model(onnx.load(folder / "model.onnx"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encodings = tokenizer.encode_batch([f"the text: {text}" for text in TEXTS])
    assert max(len(one.ids) for one in encodings) == 48
    inputs = {
        "input_ids": np.array([one.ids for one in encodings], np.int64),
        "attention_mask": np.array([one.attention_mask for one in encodings], np.int64),
    }
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (embeddings,) = session.run(None, inputs)
    expected = CachedEncoder(prompted, EncodeOptions(cache=False)).encode_document(TEXTS)
    assert np.allclose(embeddings, expected, atol=1e-5)


def test_openvino_alone_reads_it(exported: dict[str, Path]) -> None:
    import openvino

    compiled = openvino.Core().compile_model(str(exported["openvino"] / "model.xml"), "CPU")
    assert {one.get_any_name() for one in compiled.inputs} == {"input_ids", "attention_mask"}
    ids = np.ones((3, 5), np.int64)
    assert compiled({"input_ids": ids, "attention_mask": ids})[0].shape == (3, 32)


def test_what_stands_in_the_folder(exported: dict[str, Path]) -> None:
    for form, folder in exported.items():
        described = json.loads((folder / "export.json").read_text())
        assert described["prompts"] == {"query": "what is ", "document": "the text: ", "text": ""}
        assert (described["to"], described["dimensions"], described["max_length"]) == (form, 32, 48)
        report = json.loads((folder / "run.json").read_text())["report"]
        text = (folder / "README.md").read_text()
        assert "bge-cocktail" in yaml.safe_load(text.split("---")[1])["tags"]
        if report is None:
            assert "**It was not judged**" in text
        else:
            assert report["scores"][0]["interval"] is not None
            assert "of the first 10 neighbours are the same" in text
    sizes = {form: sum(file.stat().st_size for file in folder.iterdir()) for form, folder in exported.items()}
    assert sizes["onnx-int8"] < sizes["onnx"]


def test_weights_in_int8_have_the_scale_that_loses_least() -> None:
    """Against every scale of a fine grid, for inputs whose components differ in size."""
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((40, 6)).astype(np.float32)
    weights[3, 2] = 9  # one outlier stretches its channel
    moments = rng.uniform(0.01, 1, 40)
    moments[3] = 1e-6  # on an input that is hardly ever there

    def loss(scales: np.ndarray) -> np.ndarray:
        rounded = np.clip(np.round(weights / scales), -127, 127) * scales
        return moments @ np.square(weights - rounded)

    scales = best_scales(weights, moments)
    whole = np.abs(weights).max(axis=0) / 127
    assert (loss(scales) <= loss(whole) + 1e-12).all()
    assert loss(scales)[2] < 0.7 * loss(whole)[2]


def test_matrices_that_turn_embeddings_most_stay_as_they_are() -> None:
    """As many as fit, against every subset: angles' squares add up where errors are independent."""
    harm = {"a": 0.004, "b": 0.0002, "c": 0.0004, "d": 0.0001}
    tried = []

    def cosines(scales: Mapping[str, np.ndarray]) -> np.ndarray:
        tried.append(set(scales))
        return 1 - sum(harm[name] for name in scales) * np.array([0.5, 1.0])

    scales = dict.fromkeys(harm, np.ones(1))
    assert set(within_cosine(scales, cosines, 0.999)) == {"b", "c", "d"}
    assert set(within_cosine(scales, cosines, 0.9995)) == {"b", "d"}
    assert set(within_cosine(scales, cosines, 0.99995)) == set()
    tried.clear()
    assert set(within_cosine(scales, cosines, 0.99)) == set(harm)
    assert tried == [set(harm)]  # nothing is sought where all fit
    with pytest.raises(CocktailError, match=r"least_cosine=0\.999 can't be had: .* it is 0\.990000"):
        within_cosine(scales, lambda chosen: cosines(chosen) - 0.01, 0.999)


def test_int8_as_near_as_asked(prompted: Path, tmp_path: Path) -> None:
    """Nearer than with all matrices in int8, on the texts that it was calibrated on."""
    rough = perturb(prompted, tmp_path / "rough", 0, scale=0.3)  # weights that matter
    expected = CachedEncoder(rough, EncodeOptions(cache=False)).encode_document(TEXTS)

    def least(name: str, wanted: float | None) -> float:
        options = ExportOptions(to="openvino-int8", least_cosine=wanted)
        export(rough, tmp_path / name, options, texts=TEXTS, judge=False)
        served = BackendEncoder(open_backend(tmp_path / name, ServeOptions()))
        return float((served.encode_document(TEXTS) * expected).sum(axis=1).min())

    whole = least("whole", None)
    near = least("near", 1 - (1 - whole) / 2)
    # batches are padded here and weren't there, and sums of bfloat16 are in another order
    assert near > 1 - (1 - whole) * 0.6


def test_fewer_dimensions(prompted: Path, task: Path, tmp_path: Path) -> None:
    report = export(prompted, tmp_path / "out", ExportOptions(to="onnx", dimensions=8, max_loss=1), target=[task])
    assert report is not None
    assert report["least_cosine"] > 0.99999  # to the model's own first dimensions
    served = BackendEncoder(open_backend(tmp_path / "out", ServeOptions()))
    expected = CachedEncoder(prompted, EncodeOptions(cache=False)).encode_query(TEXTS)[:, :8]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(served.encode_query(TEXTS), expected, atol=1e-5)


def test_what_loses_too_much_is_refused() -> None:
    """By the interval of the difference, not by its middle; the exit code says that a gate was not passed."""
    change: ScoreChange = {
        "task": "t",
        "metric": "nDCG@10",
        "before": 0.5,
        "after": 0.499,
        "difference": -0.001,
        "interval": (-0.02, 0.01),
    }
    report: ExportReport = {
        "to": "onnx",
        "cosine": 1.0,
        "least_cosine": 1.0,
        "first_ten": 1.0,
        "megabytes": (1, 1),
        "texts_per_second": (1, 1),
        "scores": [change],
    }
    refuse_loss(report, 0.021)
    with pytest.raises(
        Refused, match=r"may be -0\.0200, and `max_loss` allows -0\.0050; nothing was written"
    ) as refused:
        refuse_loss(report, 0.005)
    assert refused.value.exit_code == 3


def test_bfloat16_is_half_the_size_and_loads(prompted: Path, task: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    report = export(prompted, tmp_path / "out", ExportOptions(to="torch-bf16", max_loss=0.2), target=[task])
    assert report is not None
    assert report["least_cosine"] > 0.99
    whole, half = ((folder / "model.safetensors").stat().st_size for folder in (prompted, tmp_path / "out"))
    assert half < 0.6 * whole
    SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(["x"])


def test_pruned_and_distilled(cli: Cli, tmp_path: Path, task: Path) -> None:
    """One of two layers, trained to give what both gave, comes nearer to that than one layer alone."""
    base = build_model(tmp_path / "base", seed=3)
    tensors = load_file(base / "model.safetensors")
    for name, value in tensors.items():
        tensors[name] = value * 8 if "encoder.layer" in name and value.ndim == 2 else value
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})  # so that a layer is missed
    common = ("--prune-layers", 1, "--distil-from", base, "--target", task, "--max-loss", 1)
    cli("export", base, "--to", "torch-bf16", *common, "--epochs", 30, "-o", tmp_path / "long")
    cli("export", base, "--to", "torch-bf16", *common, "--epochs", 0.01, "-o", tmp_path / "short")
    cosines = [json.loads((tmp_path / name / "run.json").read_text())["report"]["cosine"] for name in ("short", "long")]
    assert cosines[0] < 0.99
    assert 1 - cosines[1] < 0.8 * (1 - cosines[0])


def test_gguf_holds_the_model(prompted: Path, tmp_path: Path) -> None:
    """Read back by the format's own reader: numbers, names and the tokenizer."""
    gguf = pytest.importorskip("gguf")
    export(prompted, tmp_path / "out", ExportOptions(to="gguf"), judge=False)
    reader = gguf.GGUFReader(tmp_path / "out/model.gguf")
    tensors = {one.name: one for one in reader.tensors}
    own = load_file(prompted / "model.safetensors")
    found = np.asarray(tensors["blk.1.attn_q.weight"].data, np.float32)
    assert np.allclose(found, own["encoder.layer.1.attention.self.query.weight"], atol=1e-3)
    assert tensors["position_embd.weight"].data.shape[0] == 48  # no text is longer
    assert int(reader.fields["bert.pooling_type"].parts[-1][0]) == 1
    assert int(reader.fields["bert.context_length"].parts[-1][0]) == 48
    assert "**It was not judged**" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(UsageError, match="for another program"):
        open_backend(tmp_path / "out", ServeOptions())


@pytest.mark.parametrize(
    ("options", "judged", "said"),
    [
        (ExportOptions(to="openvino", least_cosine=0.999), True, "`least_cosine` says what int8 may change"),
        (ExportOptions(to="onnx"), False, "name a `target` task"),
        (ExportOptions(to="onnx", prune_layers=1), True, "go together"),
        (ExportOptions(to="onnx", dimensions=64), True, "the model has 32"),
        (ExportOptions(to="gguf", dimensions=8), True, "doesn't go with gguf"),
    ],
)
def test_what_can_not_be(prompted: Path, task: Path, tmp_path: Path, options: Any, judged: bool, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        export(prompted, tmp_path / "out", options, target=[task] if judged else [])
    assert leftovers(tmp_path) == []


def test_a_full_disk_and_wrong_folders(
    cli: Cli, prompted: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: dict[str, Path]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "out"))

    monkeypatch.setattr("shutil.copyfile", full)
    result = cli("export", prompted, "--to", "torch-bf16", "--target", task, "-o", tmp_path / "out", code=1)
    monkeypatch.undo()
    assert "no space left" in result.stderr
    assert leftovers(tmp_path) == []
    broken = shutil.copytree(exported["onnx"], tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(CocktailError, match="onnxruntime can't load it"):
        open_backend(broken, ServeOptions())
    (broken / "export.json").write_text("{}")
    with pytest.raises(DataError, match="is not what export writes"):
        open_backend(broken, ServeOptions())
    with pytest.raises(UsageError, match="was exported for onnx, not for openvino"):
        open_backend(exported["onnx"], ServeOptions(backend="openvino"))
    with pytest.raises(UsageError, match="the model has 32"):
        open_backend(exported["onnx"], ServeOptions(dimensions=[64]))
    with pytest.raises(UsageError, match="write a graph first"):
        open_backend(prompted, ServeOptions(backend="onnx"))


def test_exports_are_served(exported: dict[str, Path], prompted: Path) -> None:
    from starlette.testclient import TestClient

    from bge_cocktail.serving.endpoint import make_app, open_served

    served = open_served({form: str(folder) for form, folder in exported.items()}, ServeOptions())
    expected = CachedEncoder(prompted, EncodeOptions(cache=False)).encode_query(TEXTS)
    with TestClient(make_app(served)) as client:
        for form in exported:
            told = client.post("/v1/embeddings", json={"model": f"{form}:query", "input": TEXTS}).json()
            found = np.array([one["embedding"] for one in told["data"]])
            assert (found * expected).sum(axis=1).min() >= LEAST[form]
