"""The same training with sentence-transformers' own trainer and loss."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.losses import MultipleNegativesRankingLoss
from torch.utils.data import BatchSampler, SequentialSampler


class InOrder(SentenceTransformerTrainer):
    """Batches in the order of the records."""

    def get_batch_sampler(self, dataset: Any, batch_size: int, drop_last: bool, **_: Any) -> BatchSampler:
        return BatchSampler(SequentialSampler(dataset), batch_size, drop_last)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No model card."""


def main() -> None:
    """Train and print."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    options = settings["options"]
    rows = [json.loads(line) for line in Path(settings["records"]).read_text().splitlines()]
    columns = {"query": [row["query"] for row in rows], "pos": [row["pos"][0] for row in rows]}
    columns |= {f"neg{n}": [row["neg"][n] for row in rows] for n in range(options["negatives"])}
    model = SentenceTransformer(settings["model"], device=options["device"])
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=settings["steps"],
            per_device_train_batch_size=options["batch_size"],
            learning_rate=options["learning_rate"],
            lr_scheduler_type="constant",
            weight_decay=options["weight_decay"],
            bf16=options["precision"] == "bf16",
            use_cpu=options["device"] == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        loss = MultipleNegativesRankingLoss(model, scale=1 / options["temperature"])
        trainer = InOrder(model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=loss)
        wall, cpu = time.monotonic(), time.process_time()
        trainer.train()
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if options["device"] == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e6
    print(json.dumps({"cpu": cpu, "wall": wall, "losses": losses, "peak": peak}))


if __name__ == "__main__":
    main()
