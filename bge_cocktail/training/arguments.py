"""Our options in the words of sentence-transformers' trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from sentence_transformers import SentenceTransformerTrainingArguments

from bge_cocktail.options import Tuning


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a training runs.

    Attributes:
        device: ``cpu``, ``cuda`` or ``mps``.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``fp8``.
        process: Which process this is.
        processes: How many train together.
    """

    device: str = "cpu"
    precision: str = "fp32"
    process: int = 0
    processes: int = 1


def make_arguments(
    options: Tuning,
    checkpoints: Path,
    setting: Setting,
    batches: int,
    rates: dict[str, float],
    watched: bool,
    primary: str | None,
) -> SentenceTransformerTrainingArguments:
    """The arguments of the trainer.

    Args:
        options: How to tune.
        checkpoints: Folder for checkpoints.
        setting: Device and precision.
        batches: How many an epoch has.
        rates: Learning rates by a pattern of parameters' names.
        watched: Whether anything is looked at while training.
        primary: The metric that the best checkpoint goes by.
    """
    steps_an_epoch = math.ceil(batches / options.accumulate)
    steps = math.ceil(steps_an_epoch * options.epochs)
    every = max(1, math.ceil(min(steps_an_epoch, steps) / options.evaluations))
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.learning_rate,
        learning_rate_mapping=rates,
        warmup_steps=options.warmup,
        lr_scheduler_type="constant_with_warmup" if options.schedule == "constant" else options.schedule,
        optim=options.optimizer,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        bf16=setting.precision == "bf16",
        fp16=setting.precision == "fp16",
        tf32=True if options.tf32 else None,
        torch_compile=options.compile,
        **_recomputing(options),
        use_cpu=setting.device == "cpu",
        dataloader_num_workers=options.workers,
        # processes embed different numbers of chunks: a broadcast with each would wait forever
        ddp_broadcast_buffers=False,
        seed=options.seed,
        data_seed=options.seed,
        logging_steps=max(1, steps // 1000),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=every,
        eval_strategy="steps" if watched else "no",
        eval_steps=every,
        eval_on_start=watched,
        metric_for_best_model=f"eval_{primary}" if primary else None,
        greater_is_better=True if primary else None,
        # the counter of early stopping goes on where it was
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        report_to=options.report_to or "none",
        disable_tqdm=True,
    )
    if setting.precision == "fp8":
        arguments.mixed_precision = "fp8"
    # several visible GPUs would make the trainer copy the model to each and split our batches between them
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _recomputing(options: Tuning) -> dict[str, bool]:
    """Gradient checkpointing by the name that this version of transformers has for it; none where it is off."""
    names = SentenceTransformerTrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    return {name: True} if options.gradient_checkpointing else {}
