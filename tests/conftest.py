"""Small models and data, made once a test session."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# models of two layers are quicker on one thread; read when numpy and torch are imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import settings

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parent.parent

WORDS = [
    "red",
    "green",
    "blue",
    "grey",
    "pink",
    "apple",
    "pear",
    "plum",
    "cherry",
    "lemon",
    "dog",
    "cat",
    "horse",
    "mouse",
    "bird",
    "runs",
    "sleeps",
    "eats",
    "sings",
    "jumps",
    "big",
    "small",
    "old",
    "young",
    "fast",
    "slow",
    "house",
    "garden",
    "street",
    "river",
    "hill",
    "near",
    "under",
    "over",
    "beside",
    "the",
    "a",
    "of",
    "in",
    "who",
    "what",
    "where",
    "which",
    "does",
    "is",
    "how",
    "many",
    "train",
    "boat",
    "plane",
    "bike",
    "car",
    "rides",
    "sails",
    "flies",
    "stops",
    "waits",
]


# laws say nothing of time, which a busy machine takes
settings.register_profile("laws", deadline=None)
settings.load_profile("laws")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has an embedding cache of its own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("BGE_COCKTAIL_CACHE", str(folder))
    return folder


def build_model(folder: Path, *, seed: int = 0, hidden: int = 32, pooling: str = "mean") -> Path:
    """A BERT of 2 layers with a word vocabulary, as a sentence-transformers folder."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    plain = folder.with_name(folder.name + ".plain")
    plain.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS), "?", "."]
    (plain / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(plain)
    BertTokenizerFast(str(plain / "vocab.txt"), model_max_length=64).save_pretrained(plain)
    transformer = Transformer(str(plain), max_seq_length=48)
    modules = [transformer, Pooling(hidden, pooling_mode=pooling), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder), create_model_card=False)
    shutil.rmtree(plain)
    from bge_cocktail.models.layout import make_portable

    make_portable(folder, max_length=48)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return build_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def nudged(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models of the tiny model's shape, each some way off, as tuning would leave them."""
    return [perturb(tiny, tmp_path_factory.mktemp("nudged") / f"nudged{number}", number) for number in range(3)]


def perturb(model: Path, folder: Path, seed: int, scale: float = 0.02) -> Path:
    """A copy of a model with noise on its weights."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(model, folder)
    generator = np.random.default_rng(seed)
    tensors = load_file(folder / "model.safetensors")
    moved = {
        name: (value + scale * generator.standard_normal(value.shape)).astype(value.dtype)
        if value.dtype.kind == "f"
        else value
        for name, value in tensors.items()
    }
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BEIR folder: each document has its own words, each query some of them."""
    folder = tmp_path_factory.mktemp("beir") / "animals"
    (folder / "qrels").mkdir(parents=True)
    generator = np.random.default_rng(5)
    colours, fruits, animals, verbs = WORDS[:5], WORDS[5:10], WORDS[10:15], WORDS[15:20]
    documents, queries, qrels = [], [], {"train": [], "dev": [], "test": []}
    number = 0
    for colour in colours:
        for animal in animals:
            fruit, verb = generator.choice(fruits), generator.choice(verbs)
            documents.append({"_id": f"d{number}", "title": animal, "text": f"the {colour} {animal} {verb} {fruit} ."})
            for split, text in (
                ("train", f"which {animal} is {colour}"),
                ("train", f"{colour} {animal} {verb} what ?"),
                ("dev", f"where is the {colour} {animal}"),
                ("test", f"what is the {colour} {animal}"),
            ):
                name = f"q{len(queries)}"
                queries.append({"_id": name, "text": text})
                qrels[split].append(f"{name}\td{number}\t1")
            number += 1
    write_lines(folder / "corpus.jsonl", documents)
    write_lines(folder / "queries.jsonl", queries)
    for split, lines in qrels.items():
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled texts: what does it, an animal or a vehicle."""
    folder = tmp_path_factory.mktemp("labelled") / "kinds"
    folder.mkdir()
    generator = np.random.default_rng(3)
    rows = [
        {"text": f"the {generator.choice(WORDS[:5])} {thing} {generator.choice(verbs)}", "label": label}
        for label, things, verbs in (
            ("animal", WORDS[10:15], WORDS[15:20]),
            (
                "vehicle",
                ["train", "boat", "plane", "bike", "car"],
                ["rides", "sails", "flies", "stops", "waits"],
            ),
        )
        for thing in things
        for _ in range(24)
    ]
    generator.shuffle(rows)  # type: ignore[arg-type]
    write_lines(folder / "train.jsonl", rows[:200])
    write_lines(folder / "test.jsonl", rows[200:])
    return folder


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    """JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_alike(folder: Path, count: int) -> None:
    """Scored pairs of texts: the score is the number of words that both begin with."""
    generator = np.random.default_rng(4)
    rows: list[dict[str, object]] = []
    for _ in range(count):
        first = list(generator.choice(WORDS, 4))
        kept = int(generator.integers(0, 5))
        second = first[:kept] + list(generator.choice(WORDS, 4 - kept))
        rows.append({"sentence1": " ".join(first), "sentence2": " ".join(second), "score": float(kept)})
    write_lines(folder / "test.jsonl", rows)


@pytest.fixture
def cli() -> Callable[..., Result]:
    """Runs the command line in this process."""

    def run(*arguments: object, code: int | None = 0) -> Result:
        from bge_cocktail.cli import main

        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if code is not None:
            assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return run


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )


def cpu_seconds(*arguments: str, repeats: int = 2) -> float:
    """User and system time of a Python command, the least of some runs."""
    code = (
        "import resource, subprocess, sys\n"
        f"subprocess.run([sys.executable, *{arguments!r}], stdout=subprocess.DEVNULL, check=True)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    )
    return min(float(python(code).stdout) for _ in range(repeats))


@functools.cache
def slowness() -> float:
    """How much slower than an idle machine this one is now: importing torch takes about 1.5 CPU seconds there."""
    return max(1.0, cpu_seconds("-c", "import torch") / 1.5)


def leftovers(folder: Path) -> list[str]:
    """Temporary files that something left behind."""
    return [str(path) for path in folder.rglob("*") if path.name.endswith((".tmp", ".old"))]


def build_reranker(folder: Path) -> Path:
    """A small cross-encoder with one output."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS), "?", "."]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cross-encoder."""
    return build_reranker(tmp_path_factory.mktemp("rerankers") / "small")
