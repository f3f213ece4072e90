"""The same training with FlagEmbedding's runner, in its own environment; takes a plain transformers folder."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from FlagEmbedding.abc.finetune.embedder import AbsEmbedderDataArguments as DataArguments
from FlagEmbedding.abc.finetune.embedder import AbsEmbedderModelArguments as ModelArguments
from FlagEmbedding.abc.finetune.embedder import AbsEmbedderTrainingArguments as TrainingArguments
from FlagEmbedding.finetune.embedder.encoder_only.base.runner import EncoderOnlyEmbedderRunner
from torch.utils.data import SequentialSampler


def main() -> None:
    """Train and print."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    options = settings["options"]
    with tempfile.TemporaryDirectory() as folder:
        runner = EncoderOnlyEmbedderRunner(
            model_args=ModelArguments(model_name_or_path=settings["plain"]),
            data_args=DataArguments(
                train_data=[settings["records"]],
                train_group_size=1 + options["negatives"],
                query_max_len=options["query_max_length"],
                passage_max_len=options["max_length"],
            ),
            training_args=TrainingArguments(
                output_dir=folder,
                max_steps=settings["steps"],
                per_device_train_batch_size=options["batch_size"],
                learning_rate=options["learning_rate"],
                lr_scheduler_type="constant",
                weight_decay=options["weight_decay"],
                bf16=options["precision"] == "bf16",
                use_cpu=options["device"] == "cpu",
                temperature=options["temperature"],
                sentence_pooling_method=settings["pooling"],
                normalize_embeddings=True,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
        )
        trainer = runner.trainer
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer._get_train_sampler = lambda dataset=None: SequentialSampler(dataset or trainer.train_dataset)
        wall, cpu = time.monotonic(), time.process_time()
        trainer.train()
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    losses: list[Any] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if options["device"] == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e6
    print(json.dumps({"cpu": cpu, "wall": wall, "losses": losses, "peak": peak}))


if __name__ == "__main__":
    main()
