"""Our batches and losses inside sentence-transformers' trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from torch import nn
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from bge_cocktail.errors import CocktailError
from bge_cocktail.options import Training
from bge_cocktail.training.batches import Batches
from bge_cocktail.training.callbacks import AnchorCallback, CheckpointCallback, ProgressCallback, ReportCallback
from bge_cocktail.training.checkpoints import load_weights, save_weights
from bge_cocktail.training.collate import Collator
from bge_cocktail.training.module import BatchLoss
from bge_cocktail.training.parameters import learning_rates
from bge_cocktail.training.rows import TrainingRows

Metrics = Callable[[SentenceTransformer], dict[str, float]]


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


class Evaluator(SentenceEvaluator):  # the trainer asks for this class
    """Hands the trainer what is watched."""

    def __init__(self, metrics: Metrics, primary: str) -> None:
        super().__init__()
        self.primary_metric = primary
        self._metrics = metrics

    def __call__(self, model: SentenceTransformer, *_: object, **__: object) -> dict[str, float]:
        training = model.training
        model.eval()
        values = self._metrics(model)
        model.train(training)
        return values


class Loader(DataLoader[Any]):
    """A loader whose batches know the epoch; the trainer tells it."""

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next."""
        self.batch_sampler.set_epoch(epoch)


class Places(Sequence[Any]):
    """A data set whose items are their own places; batches are made of the rows by the collator."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        return place


class Trainer(SentenceTransformerTrainer):
    """sentence-transformers' trainer with our batches and checkpoints, and without model cards, which ask the hub."""

    batches: Batches

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No model card."""

    def get_train_dataloader(self) -> Loader:
        """Our batches; every process makes its own part of each, so they aren't divided once more."""
        return Loader(
            Places(len(self.train_dataset)),
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            persistent_workers=False,
            pin_memory=self.args.device.type == "cuda",
        )

    def collect_features(self, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """A batch as `Collator` makes it: chunks of features, and the targets."""
        return inputs["chunks"], inputs["targets"]

    def parts(self) -> nn.Module:
        """All that is trained: the model, and the heads of tasks."""
        return nn.ModuleDict({"model": self.model, "heads": self.loss.heads})

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Any] | None = None) -> None:
        save_weights(self.parts(), Path(output_dir or self.args.output_dir), state_dict)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        load_weights(self.parts(), Path(checkpoint_path))


def make_trainer(
    model: SentenceTransformer,
    rows: TrainingRows,
    options: Training,
    prompts: Mapping[str, str],
    checkpoints: Path,
    setting: Setting,
    *,
    metrics: Metrics | None = None,
    primary: str | None = None,
    report: Callable[[int, float], None] | None = None,
    more_callbacks: Sequence[TrainerCallback] = (),
) -> Trainer:
    """A trainer over rows, ready to run.

    Args:
        model: The model to tune, on its device, its parameters prepared.
        rows: One pair of query and positive each.
        options: How to tune.
        prompts: Put before queries and documents, by role.
        checkpoints: Folder for checkpoints.
        setting: Device, precision, processes.
        metrics: What is watched.
        primary: The metric that early stopping watches; without it, the last weights are kept.
        report: Is told step and primary metric.
        more_callbacks: For the trainer.
    """
    batches = Batches(rows, options, setting.processes)
    arguments = make_arguments(model, options, checkpoints, setting, len(batches), bool(metrics), primary)
    anchor = [AnchorCallback(options.anchor)] if options.anchor and options.anchor_by == "weights" else []
    callbacks: list[TrainerCallback] = [ProgressCallback(), *anchor, *more_callbacks]
    if primary and options.patience:
        callbacks.append(EarlyStoppingCallback(options.patience))
    if primary and report:
        callbacks.append(ReportCallback(f"eval_{primary}", report))
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"row": range(len(rows))}),
        loss=BatchLoss(model, options, rows.tasks),
        evaluator=Evaluator(metrics, primary or "") if metrics else None,
        data_collator=Collator(model, rows, options, prompts, (setting.process, setting.processes), setting.precision),
        callbacks=[*callbacks, CheckpointCallback(options.save_steps)],
    )
    trainer.batches = batches
    trainer.remove_callback(PrinterCallback)
    for one in anchor:
        one.remember(model)
    return trainer


def make_arguments(
    model: SentenceTransformer,
    options: Training,
    checkpoints: Path,
    setting: Setting,
    batches: int,
    watched: bool,
    primary: str | None,
) -> SentenceTransformerTrainingArguments:
    """Our options in the trainer's words."""
    steps_an_epoch = math.ceil(batches / options.accumulate)
    steps = math.ceil(steps_an_epoch * options.epochs)
    every = max(1, math.ceil(min(steps_an_epoch, steps) / options.evaluations))
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.learning_rate,
        learning_rate_mapping=learning_rates(model, options),
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


def _recomputing(options: Training) -> dict[str, bool]:
    """Gradient checkpointing by the name that this version of transformers has for it; none where it is off."""
    names = SentenceTransformerTrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    return {name: True} if options.gradient_checkpointing else {}


def explain_failure(error: Exception, trainer: Trainer, options: Training) -> None:
    """Raise the errors that a user can mend as such; writers of checkpoints don't raise OSError on a full disk."""
    if isinstance(error, torch.OutOfMemoryError):
        raise CocktailError(f"out of memory on {trainer.args.device}: {_cure(options)}") from error
    if any(sign in str(error) for sign in ("No space left", "PytorchStreamWriter", "File too large")):
        raise CocktailError(
            f"a checkpoint in {trainer.args.output_dir} could not be written: {str(error).splitlines()[0]}; "
            "free some space, then go on with --resume"
        ) from error


def _cure(options: Training) -> str:
    """What to change and to what, the least harmful first."""
    if not options.gradient_cache:
        return f"add --gradient-cache, which keeps batch size {options.batch_size} and its in-batch negatives"
    tokens = options.chunk_tokens or 16384
    if tokens > 1024:
        return f"with the gradient cache, memory is that of one chunk: --chunk-tokens {tokens // 2}"
    if not options.gradient_checkpointing:
        return "add --gradient-checkpointing"
    return f"lower the longest text (--max-length {max(8, (options.max_length or 512) // 2)})"
