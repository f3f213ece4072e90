#!/usr/bin/env python3
"""What a GPU makes of this tool, in a few minutes: embedding, training, classifying, serving.

    .venv/bin/python scripts/gpu_check.py [--device cuda] [--model FOLDER]

Each figure stands beside sentence-transformers' own in the same run. Ends with one JSON line: name, ours, peer, ratio,
target, met; without a GPU it says so and measures nothing (--device cpu tries the script itself). Needs the extra
`demo`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measuring import Figures

from bge_cocktail.data.record_files import read_records
from bge_cocktail.flow.demo import demo_data, demo_model
from bge_cocktail.models.embed import embed
from bge_cocktail.models.encoder import load_encoder
from bge_cocktail.options import ServeOptions, TrainOptions
from bge_cocktail.serving.backends import TorchBackend
from bge_cocktail.training.encoder.train import train


def seconds(work: Any, device: str) -> float:
    """Wall seconds of some work, after one turn that makes things ready."""
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", type=Path, default=demo_model())
    parser.add_argument("--texts", type=int, default=20_000)
    arguments = parser.parse_args()
    device = arguments.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        print(json.dumps({"name": "gpu", "ours": None, "peer": None, "ratio": None, "target": None, "met": None}))
        print("no GPU here: nothing was measured")
        return
    figures = Figures("gpu")
    lines = (demo_data() / "handbook/corpus.jsonl").read_text().splitlines()
    documents = [json.loads(line)["text"] for line in lines]
    texts = [f"{documents[number % len(documents)]} {number}" for number in range(arguments.texts)]
    model = load_encoder(arguments.model, device=device)
    theirs = seconds(lambda: model.encode(texts, batch_size=256, show_progress_bar=False), device)
    for precision in ("fp32", "bf16"):
        ours = seconds(lambda precision=precision: embed(model, texts, precision=precision), device)
        figures.note(f"embed, {precision}, s", ours, theirs, 1, f"{len(texts):,} texts", least=True)
    backend = TorchBackend(arguments.model, ServeOptions(device=device, precision="auto"))
    ids = backend.tokenize(texts[:256], "text")
    each = seconds(lambda: [backend.embed([one], "text") for one in ids], device) / len(ids)
    figures.note("one text served, ms", 1000 * each, None, 20, "one at a time")
    records = read_records(demo_data() / "handbook")
    with tempfile.TemporaryDirectory() as scratch:
        options = TrainOptions(device=device, epochs=2, batch_size=64, negatives=0)
        started = time.perf_counter()
        folder = train(arguments.model, records, Path(scratch) / "tuned", options)
        run = json.loads((folder / "run.json").read_text())
        spent = time.perf_counter() - started
        figures.note(
            "train, ms a record", 1000 * spent / (2 * len(records)), None, 50, f"{run['precision']}, start too"
        )
    if device.startswith("cuda"):
        figures.note("peak memory, GB", torch.cuda.max_memory_allocated() / 1e9, None, 40, torch.cuda.get_device_name())
    figures.finish(write=False)


if __name__ == "__main__":
    main()
