"""Trains with bge-cocktail for bench_train.py: a file of settings in, CPU and wall seconds, losses, memory out."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from bge_cocktail.data.record_files import open_records
from bge_cocktail.models.encoder import load_encoder
from bge_cocktail.models.packing import packer
from bge_cocktail.models.prompts import Prompts
from bge_cocktail.options import TrainOptions
from bge_cocktail.training.encoder.batches import Batches, Collator
from bge_cocktail.training.encoder.loss import make_trainer
from bge_cocktail.training.encoder.training_pairs import TrainingPairs
from bge_cocktail.training.engine.malloc import keep_memory
from bge_cocktail.training.engine.parameters import prepare_parameters
from bge_cocktail.training.engine.trainer import DeviceSetup, Trainer


class InOrder(Batches):
    """Batches in the order of the records, as the peers are given them."""

    def _once(self, group: Any, generator: Any) -> Iterator[list[int]]:
        rows = group.tolist()
        return (rows[start : start + self._size] for start in range(0, len(rows), self._size))


class Clock(TrainerCallback):
    """Notes when the first step is done."""

    first = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.first = self.first or time.monotonic()


class Counted(Collator):
    """Counts the real tokens."""

    tokens = 0

    def __call__(self, batch: Any) -> dict[str, Any]:
        made = super().__call__(batch)
        self.tokens += sum(int(chunk.get("attention_mask", chunk["input_ids"] >= 0).sum()) for chunk in made["chunks"])
        return made


def private_memory() -> float:
    """MB of memory that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def main() -> None:
    """Train and print."""
    started = time.monotonic()
    settings = json.loads(Path(sys.argv[1]).read_text())
    options = TrainOptions.model_validate(settings["options"])
    device = options.device
    keep_memory()
    model = load_encoder(settings["model"], device=device)
    prepare_parameters(model, options)
    rows = TrainingPairs(open_records(settings["records"]), options)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        setting = DeviceSetup(device, options.precision)
        trainer: Trainer = make_trainer(model, rows, options, Prompts(), Path(folder), setting, more_callbacks=[clock])
        trainer.batches = InOrder(rows, options)
        pack = packer(model, options.packed, options.precision, compiled=options.compile)
        counted = Counted(model, rows, options, Prompts(), precision=options.precision, pack=pack)
        trainer.data_collator = counted
        trainer.args.save_strategy = "no"
        trainer.args.max_steps = settings["steps"]
        wall, cpu = time.monotonic(), time.process_time()
        trainer.train()
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device == "cuda":
        import torch

        peak = torch.cuda.max_memory_allocated() / 1e6
    first = clock.first - started
    found = {"cpu": cpu, "wall": wall, "losses": losses, "peak": peak, "first": first, "tokens": counted.tokens}
    print(json.dumps({**found, "private": private_memory()}))


if __name__ == "__main__":
    main()
