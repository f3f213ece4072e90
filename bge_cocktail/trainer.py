"""Our batches and loss inside sentence-transformers' trainer.

Each text of a batch is encoded once, in chunks of nearly equal length; only then are similarities taken, in
float32 (under autocast they would lose the loss).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors import SafetensorError
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from bge_cocktail.errors import CocktailError
from bge_cocktail.losses import batch_relevance, info_nce
from bge_cocktail.options import Training
from bge_cocktail.progress import Advance, progress
from bge_cocktail.records import Record, positives_by_query

log = logging.getLogger(__name__)
DEV_METRIC = "dev_nDCG@10"
CHUNK_TOKENS = {"cpu": 2048, "cuda": 16384, "mps": 4096}


class BatchLoss(nn.Module):
    """InfoNCE over a batch whose texts come in chunks: first those of the queries, then the documents'."""

    def __init__(self, model: SentenceTransformer, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, chunks: Sequence[dict[str, Tensor]], relevance: Tensor) -> Tensor:
        """The loss of a batch; `relevance` has shape (queries, documents)."""
        embeddings = torch.cat([self.model(chunk)["sentence_embedding"] for chunk in chunks])
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = nn.functional.normalize(embeddings.float(), dim=1)
            queries, documents = embeddings.split(list(relevance.shape))
            return info_nce(queries, documents, relevance, self.temperature)


class BatchCollator:
    """Turns row numbers into a batch: chunks of tokens, and the relevance of documents to queries."""

    # read by the trainer; there is no label column in the data
    valid_label_columns: Sequence[str] = ()

    def __init__(
        self, model: SentenceTransformer, rows: Sequence[Record], options: Training, prompts: dict[str, str]
    ) -> None:
        self._model = model
        self._rows = rows
        self._options = options
        self._prompts = prompts
        self._known = positives_by_query(rows)
        self._budget = CHUNK_TOKENS.get(model.device.type, 1024)

    def __call__(self, batch: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        records = [self._rows[one["row"]] for one in batch]
        documents, relevance = batch_relevance(records, negatives=self._options.negatives, known_positives=self._known)
        queries = [
            (record.query, self._prompts["query"] if record.prompt is None else record.prompt) for record in records
        ]
        query_order, query_chunks = self._chunks(queries)
        document_order, document_chunks = self._chunks([(text, self._prompts["document"]) for text in documents])
        features = {
            f"chunk{number:04d}_{name}": tensor
            for number, chunk in enumerate([*query_chunks, *document_chunks])
            for name, tensor in chunk.items()
        }
        return {**features, "label": torch.from_numpy(relevance[np.ix_(query_order, document_order)])}

    def _chunks(self, texts: list[tuple[str, str]]) -> tuple[list[int], list[dict[str, Any]]]:
        """Texts with their prompts, sorted by prompt and length and cut by tokens; and the order they are in."""
        sizes = [len(text) for text, _ in texts]
        order = sorted(range(len(texts)), key=lambda index: (texts[index][1], -sizes[index], index))
        chunks: list[dict[str, Any]] = []
        for start, end in self._cuts([texts[index] for index in order]):
            part = [texts[index] for index in order[start:end]]
            chunks.append(self._model.preprocess([text for text, _ in part], prompt=part[0][1] or None))
        return order, chunks

    def _cuts(self, texts: list[tuple[str, str]]) -> Iterator[tuple[int, int]]:
        start = 0
        for end in range(1, len(texts) + 1):
            # about four characters a token; the first of a chunk is its longest
            longest = min(len("".join(texts[start])) // 4 + 2, self._model.max_seq_length or 10**9)
            if end == len(texts) or texts[end][1] != texts[start][1] or longest * (end - start + 1) > self._budget:
                yield start, end
                start = end


class DevEvaluator(SentenceEvaluator):  # the trainer asks for this class
    """Hands the trainer our dev metric."""

    def __init__(self, name: str, metric: Callable[[SentenceTransformer], float]) -> None:
        super().__init__()
        self.primary_metric = name
        self._metric = metric

    def __call__(self, model: SentenceTransformer, *_: object, **__: object) -> dict[str, float]:
        training = model.training
        model.eval()
        value = self._metric(model)
        model.train(training)
        return {self.primary_metric: value}


class ProgressCallback(TrainerCallback):
    """Announces the steps, and stops at a loss that is no number."""

    def __init__(self) -> None:
        self._context: AbstractContextManager[Advance] | None = None
        self._advance: Advance = lambda _steps: None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._context = progress("training", state.max_steps)
        self._advance = self._context.__enter__()
        self._advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and not math.isfinite(logs.get("loss", 0.0)):
            raise CocktailError(
                f"the loss is {logs['loss']} at step {state.global_step}; a lower learning rate or fp32 may help"
            )

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        value = (metrics or {}).get(f"eval_{DEV_METRIC}")
        if value is not None:
            log.info("step %d of %d: %s %.4f", state.global_step, state.max_steps, DEV_METRIC.replace("_", " "), value)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._context is not None:
            self._context.__exit__(None, None, None)


class Trainer(SentenceTransformerTrainer):
    """sentence-transformers' trainer without model cards, which cost time and ask the hub."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No model card."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.model.save_pretrained(output_dir or self.args.output_dir, create_model_card=False)


def make_trainer(
    model: SentenceTransformer,
    rows: Sequence[Record],
    options: Training,
    prompts: dict[str, str],
    dev_metric: Callable[[SentenceTransformer], float] | None,
    checkpoints: Path,
    precision: str,
    device: str,
) -> Trainer:
    """A trainer over rows, ready to run.

    Args:
        model: The model to tune, on its device.
        rows: One pair of query and positive each.
        options: How to tune.
        prompts: Put before queries and documents, by role.
        dev_metric: Early stopping watches it; without it, the last weights are kept.
        checkpoints: Folder for checkpoints.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        device: Where the model is.
    """
    steps_an_epoch = math.ceil(len(rows) / options.batch_size)
    steps = math.ceil(steps_an_epoch * options.epochs)
    every = max(1, math.ceil(min(steps_an_epoch, steps) / options.evaluations))
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup,
        lr_scheduler_type="constant_with_warmup" if options.schedule == "constant" else options.schedule,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=device == "cpu",
        seed=options.seed,
        data_seed=options.seed,
        logging_steps=max(1, steps // 1000),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        eval_strategy="steps" if dev_metric else "no",
        eval_steps=every,
        eval_on_start=dev_metric is not None,
        load_best_model_at_end=dev_metric is not None,
        metric_for_best_model=f"eval_{DEV_METRIC}" if dev_metric else None,
        greater_is_better=True if dev_metric else None,
        # the counter of early stopping goes on where it was
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )
    # several visible GPUs would make the trainer copy the model to each and split our batches between them
    arguments._n_gpu = min(arguments.n_gpu, 1)
    callbacks: list[TrainerCallback] = [ProgressCallback()]
    if dev_metric and options.patience:
        callbacks.append(EarlyStoppingCallback(options.patience))
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"row": range(len(rows))}),
        loss=BatchLoss(model, options.temperature),
        evaluator=DevEvaluator(DEV_METRIC, dev_metric) if dev_metric else None,
        data_collator=BatchCollator(model, rows, options, prompts),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def weights_of_checkpoint(model: SentenceTransformer, checkpoint: Path) -> None:
    """Put the weights of a checkpoint into a model.

    Raises:
        CocktailError: They can't be read, or they are another model's.
    """
    try:
        saved = SentenceTransformer(
            str(checkpoint), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
        )
        model.load_state_dict(saved.state_dict())
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CocktailError(f"the best checkpoint, {checkpoint}, can't be loaded: {error}") from error


def explain_failure(error: Exception, trainer: Trainer) -> None:
    """Raise the errors that a user can mend as such; writers of checkpoints don't raise OSError on a full disk."""
    if isinstance(error, torch.OutOfMemoryError):
        batch = trainer.args.per_device_train_batch_size
        raise CocktailError(
            f"out of memory on {trainer.args.device}: lower the batch size (now {batch}), the negatives or max_length"
        ) from error
    if any(sign in str(error) for sign in ("No space left", "PytorchStreamWriter", "File too large")):
        raise CocktailError(
            f"a checkpoint in {trainer.args.output_dir} could not be written: {str(error).splitlines()[0]}; "
            "free some space, then go on with --resume"
        ) from error
