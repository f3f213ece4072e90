"""Speed and fidelity of exports beside sentence-transformers' own `encode`, and what int8 costs in nDCG@10.

    .venv/bin/python scripts/bench_export.py [--quick] [--data DIR] [--model FOLDER]

Texts a second of processor time on one thread: sentence-transformers with its defaults (fp32, batch 32), then each
export through its own backend, on short texts and on long ones. With --data (a folder that holds retrieval/scifact and
retrieval/medquad in BEIR's form) nDCG@10 is measured too; without it, on the built-in handbook. Ends with one JSON
line: name, ours, peer, ratio, target, met. Needs the extras `demo` and `export`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Figures

from bge_cocktail.evaluating.evaluate import evaluate, open_tasks
from bge_cocktail.flow.demo import demo_data, demo_model
from bge_cocktail.models.embed import batches_by_tokens
from bge_cocktail.models.encoder import load_encoder
from bge_cocktail.options import EvaluateOptions, ExportOptions, ServeOptions
from bge_cocktail.serving.backends import TorchBackend
from bge_cocktail.serving.export import export
from bge_cocktail.serving.runtime import BackendEncoder, open_backend

FORMS = ("onnx", "onnx-int8", "openvino", "openvino-int8", "openvino-int8, near", "torch-bf16")
# asked of the texts that calibrate, so that others stay above NEAR
NEAR, NEAR_ASKED = 0.999, 0.9993
SETS = ("scifact", "medquad")


def rate(embed: Any, texts: list[str]) -> tuple[float, np.ndarray]:
    """Texts a second of processor time in the second of two turns, and the embeddings."""
    embed(texts)  # runtimes make kernels ready for each new shape of a batch
    started = time.process_time()
    embeddings = embed(texts)
    return len(texts) / (time.process_time() - started), embeddings


def embedder(backend: Any) -> Any:
    """A backend as a function of texts, in its own batches."""

    def embed(texts: list[str]) -> np.ndarray:
        ids = backend.tokenize(texts, "text")
        out = np.empty((len(texts), backend.dimensions), np.float32)
        for rows in batches_by_tokens([len(one) for one in ids], backend.batch_tokens):
            out[rows] = backend.embed([ids[row] for row in rows], "text")
        return out

    return embed


def main() -> None:
    """Export, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path, default=demo_model())
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count = 200 if arguments.quick else 1000
    lines = (demo_data() / "handbook/corpus.jsonl").read_text().splitlines()
    documents = [json.loads(line)["text"] for line in lines]
    queries = [json.loads(line)["text"] for line in (demo_data() / "handbook/queries.jsonl").read_text().splitlines()]
    short = [queries[number % len(queries)] + f" {number}" for number in range(count)]
    long = [" ".join(documents[number % len(documents) :][:4]) for number in range(count // 5)]
    target = demo_data() / "handbook"
    figures = Figures("export")
    model = load_encoder(arguments.model, device="cpu")
    peers = {}
    for name, texts in (("short", short), ("long", long)):
        peers[name] = rate(lambda texts: model.encode(texts, normalize_embeddings=True), texts)
        print(f"sentence-transformers, {name}: {peers[name][0]:.1f} texts a CPU second")
    best = {"short": 0.0, "long": 0.0}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {}
        for form in FORMS:
            folders[form] = Path(scratch) / form
            near = NEAR_ASKED if form.endswith("near") else None
            options = ExportOptions(to=form.split(",")[0], least_cosine=near, max_loss=1)
            export(arguments.model, folders[form], options, texts=documents, judge=False)
            if form == "torch-bf16":
                backend: Any = TorchBackend(folders[form], ServeOptions(device="cpu", precision="bf16"))
            else:
                backend = open_backend(folders[form], ServeOptions(threads=1))
            for name, texts in (("short", short), ("long", long)):
                speed, embeddings = rate(embedder(backend), texts)
                cosines = (embeddings * peers[name][1]).sum(axis=1)
                what = f"{name} texts; cosine {cosines.mean():.5f}, least {cosines.min():.5f}"
                print(f"{form}, {what}: {speed:.1f} a CPU second, {speed / peers[name][0]:.2f} x")
                if cosines.min() >= NEAR:
                    best[name] = max(best[name], speed)
        for name, least in (("short", 2.5), ("long", 2.0)):
            ours, peer = 1000 / best[name], 1000 / peers[name][0]
            what = f"CPU ms a text, the fastest with a cosine of at least {NEAR}"
            figures.note(f"{name} texts", ours, peer, least, what, least=True)
        sets = [arguments.data / "retrieval" / name for name in SETS] if arguments.data else []
        tasks = [target] if arguments.quick else sets or [target]
        original = BackendEncoder(TorchBackend(arguments.model, ServeOptions(device="cpu")))
        for path in tasks:
            (task,) = open_tasks([path], [])
            before = main_score(evaluate(original, [task], EvaluateOptions()))
            for form in ("onnx-int8", "openvino-int8"):
                served = BackendEncoder(open_backend(folders[form], ServeOptions(threads=1)))
                after = main_score(evaluate(served, [task], EvaluateOptions()))
                what = f"{before:.4f} becomes {after:.4f}"
                figures.note(f"{path.name}, {form}, points of nDCG@10 lost", 100 * (before - after), None, 0.5, what)
    figures.finish(write=arguments.write)


def main_score(scores: list[Any]) -> float:
    """The main score of a task."""
    return float(next(score.value for score in scores if score.main))


if __name__ == "__main__":
    main()
