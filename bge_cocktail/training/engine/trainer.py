"""sentence-transformers' trainer with our batches, checkpoints and options."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from torch import nn
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from bge_cocktail.core.errors import CocktailError
from bge_cocktail.options import CommonTrainOptions, TrainOptions
from bge_cocktail.training.engine.callbacks import (
    CheckpointCallback,
    MemoryCallback,
    ProgressCallback,
    ReportCallback,
)
from bge_cocktail.training.engine.checkpoints import load_weights, load_whole_optimizer, save_weights, whole
from bge_cocktail.training.engine.cpu_functions import fast_functions, recompute_layers


@dataclass(frozen=True, slots=True)
class DeviceSetup:
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
    options: CommonTrainOptions,
    checkpoints: Path,
    setting: DeviceSetup,
    batches: int,
    rates: dict[str, float],
    watched: bool,
    primary: str | None,
) -> SentenceTransformerTrainingArguments:
    """Return the arguments of the trainer.

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
        use_cpu=setting.device == "cpu",
        dataloader_num_workers=_workers(options, setting.device),
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


# enough to tokenise as quickly as a card computes a model of BERT-base's size
_WORKERS_OF_GPU = 4


def _workers(options: CommonTrainOptions, device: str) -> int:
    if options.workers is not None:
        return options.workers
    return min(_WORKERS_OF_GPU, (os.cpu_count() or 1) - 1) if device == "cuda" else 0


Metrics = Callable[[SentenceTransformer], dict[str, float]]


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


def _in_worker(_number: int) -> None:
    """Let tokenizers work on one thread: a process that was forked has none of the others that they would wait for."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


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

    batches: Any

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No model card."""

    def get_train_dataloader(self) -> Loader:
        """Our batches; every process makes its own part of each, so they aren't divided once more."""
        return Loader(
            Places(len(self.train_dataset)),
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            worker_init_fn=_in_worker if self.args.dataloader_num_workers else None,
            persistent_workers=False,
            pin_memory=self.args.device.type == "cuda",
        )

    def collect_features(self, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """Return a batch as `Collator` makes it: chunks of features, and the targets."""
        return inputs["chunks"], inputs["targets"]

    def parts(self) -> nn.Module:
        """Return all that is trained: the model, and the heads of tasks."""
        return nn.ModuleDict({"model": self.model, "heads": self.loss.heads})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The weights; the first process writes them, all are needed where each holds a part."""
        save_weights(self.parts(), Path(output_dir or self.args.output_dir), self.args.should_save)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        load_weights(self.parts(), Path(checkpoint_path))


class ShardedTrainer(Trainer):
    """Trains a model that was cut into parts (`shard`), of which each process holds one."""

    evaluator: Any

    def create_accelerator_and_postprocess(self) -> None:
        """The model isn't wrapped once more: it gathers its parts and averages their gradients itself."""
        super().create_accelerator_and_postprocess()
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def evaluation_loop(self, *given: Any, metric_key_prefix: str = "eval", **more: Any) -> Any:
        """Return all processes judge the model, for all are needed whenever it embeds; what the first finds holds."""
        evaluator, self.evaluator = self.evaluator, None
        try:
            output = super().evaluation_loop(*given, metric_key_prefix=metric_key_prefix, **more)
        finally:
            self.evaluator = evaluator
        values = broadcast_object_list([evaluator(self.model)])[0]
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in values.items()})
        return output

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        state = whole(self.optimizer.state_dict(), keep=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
            load_whole_optimizer(self.optimizer.optimizer, state)
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))


def assemble(
    model: Any,
    options: CommonTrainOptions,
    checkpoints: Path,
    setting: DeviceSetup,
    *,
    batches: Any,
    rows: int,
    loss: nn.Module,
    collator: Callable[[Any], dict[str, Any]],
    rates: dict[str, float],
    metrics: Metrics | None = None,
    primary: str | None = None,
    report: Callable[[int, float], None] | None = None,
    more_callbacks: Sequence[TrainerCallback] = (),
    kind: type[Trainer] = Trainer,
) -> Trainer:
    """Return a trainer of any of sentence-transformers' models, ready to run.

    Args:
        model: On its device, its parameters prepared.
        options: How to tune.
        checkpoints: Folder for checkpoints.
        setting: Device, precision, processes.
        batches: Gives lists of rows; has a length and `set_epoch`.
        rows: How many there are.
        loss: Takes what the collator makes; its `heads` are trained too.
        collator: Makes ``chunks`` and ``targets`` of what `batches` gives.
        rates: Learning rates by a pattern of parameters' names, where they are others.
        metrics: What is watched.
        primary: The metric that early stopping watches; without it, the last weights are kept.
        report: Is told step and primary metric.
        more_callbacks: For the trainer.
        kind: The class of the trainer.
    """
    if options.gradient_checkpointing:
        recompute_layers(model, fast_functions(setting.device, options.compile, setting.processes))
    arguments = make_arguments(options, checkpoints, setting, len(batches), rates, bool(metrics), primary)
    callbacks: list[TrainerCallback] = [ProgressCallback(), *more_callbacks]
    if setting.device == "cpu":
        callbacks.append(MemoryCallback())
    if primary and options.patience:
        callbacks.append(EarlyStoppingCallback(options.patience))
    if primary and report:
        callbacks.append(ReportCallback(f"eval_{primary}", report))
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"row": range(rows)}),
        loss=loss,
        evaluator=Evaluator(metrics, primary or "") if metrics else None,
        data_collator=collator,
        callbacks=[*callbacks, CheckpointCallback(options.save_steps, options.average)],
    )
    trainer.batches = batches
    trainer.remove_callback(PrinterCallback)
    return trainer


def explain_failure(error: Exception, trainer: Trainer, options: CommonTrainOptions) -> None:
    """Raise the errors that a user can mend as such; writers of checkpoints don't raise OSError on a full disk."""
    if isinstance(error, torch.OutOfMemoryError):
        raise CocktailError(f"out of memory on {trainer.args.device}: {_cure(options)}") from error
    if any(sign in str(error) for sign in ("No space left", "PytorchStreamWriter", "File too large")):
        raise CocktailError(
            f"a checkpoint in {trainer.args.output_dir} could not be written: {str(error).splitlines()[0]}; "
            "free some space, then go on with `resume`"
        ) from error


def _cure(options: CommonTrainOptions) -> str:
    """Return what to change and to what, the least harmful first."""
    if isinstance(options, TrainOptions) and not options.gradient_cache:
        return f"add `gradient_cache`, which keeps batch size {options.batch_size} and its in-batch negatives"
    tokens = options.chunk_tokens or 16384
    if tokens > 1024:
        return f"with the gradient cache, memory is that of one chunk: `chunk_tokens={tokens // 2}`"
    if not options.gradient_checkpointing:
        return "add `gradient_checkpointing`"
    return f"lower the longest text (`max_length={max(8, (options.max_length or 512) // 2)}`)"
