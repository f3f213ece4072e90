"""What can be known to go wrong in a training before it begins: all of it is said at once."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from bge_cocktail.core.errors import DataError, UsageError, nearest
from bge_cocktail.core.outputs import read_object
from bge_cocktail.core.runs import note_finding
from bge_cocktail.data.beir import RetrievalData
from bge_cocktail.data.record import short_key
from bge_cocktail.evaluating.evaluate import TaskPath
from bge_cocktail.losses.total import losses
from bge_cocktail.models.layout import check_length, modules_of, refuse_unportable
from bge_cocktail.options import TrainOptions
from bge_cocktail.training.encoder.training_pairs import TrainingPairs
from bge_cocktail.training.encoder.validation import check_general
from bge_cocktail.training.engine.parameters import common_problems

log = logging.getLogger(__name__)
# those that treat each number of a parameter by itself, so that parts can be
SHARDED_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")


def check_training(base: Path, options: TrainOptions, general: Sequence[TaskPath] = ()) -> None:
    """Look for options that the device or the base can't follow or that don't go together.

    Args:
        base: The model to tune.
        options: How to tune.
        general: Folders of tasks to watch.

    Raises:
        UsageError: With a line for each thing that is wrong.
        DataError: The base has settings that the portable layout can't say, or a task can't be judged.
    """
    refuse_unportable(base)
    problems: list[str] = []

    def attempt(check: Callable[[], object]) -> None:
        try:
            check()
        except UsageError as error:
            problems.append(str(error))

    for task in ("", *options.tasks):
        own = options.of_task(task)
        where = f"tasks.{task}: " if task else ""
        for length in (own.max_length, own.query_max_length):
            attempt(partial(check_length, base, length))
        problems += [where + loss for loss in _losses(own)]
    problems += [*common_problems(base, options), *_together(options), *_sizes(base, options)]
    attempt(lambda: check_general(general, options.general_split))
    if problems:
        raise UsageError("\n".join(dict.fromkeys(problems)))


def check_pairs(rows: TrainingPairs, options: TrainOptions, processes: int = 1) -> None:
    """Refuse too few rows and data without what the losses need; say what is left out, missing or unused.

    Raises:
        UsageError: There are fewer rows than a batch, or options of a task that isn't there.
        DataError: A task has nothing to train on, or no teacher's scores where a loss learns from them.
    """
    for reason, count in rows.left_out.items():
        log.warning("%d records %s and are left out", count, reason)
    size = options.batch_size * processes
    if len(rows) < size:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise UsageError(
            f"batch_size={options.batch_size}{each} is larger than the data: {len(rows)} pairs of query and positive"
        )
    for task in options.tasks:
        if task not in rows.tasks:
            named = [task for task in rows.tasks if task]
            hint = nearest(task, named) if named else " The records name no tasks."
            raise UsageError(f"tasks.{task}: no record is of that task.{hint}")
    counts = np.bincount(rows.task_of, minlength=len(rows.tasks))
    for number, task in enumerate(rows.tasks):
        if not counts[number]:
            raise DataError(f"task '{task}' has no record to train on: all were left out")
        for name in options.of_task(task).loss:
            _check_usable(name, task, rows.usable[number], int(counts[number]))
        used = {losses.trait(name, "needs") for name in options.of_task(task).loss}
        if rows.usable[number]["scores"] and not used & {"teacher", "scores"}:
            names = ", ".join(options.of_task(task).loss)
            log.warning("the records have teacher scores, which %s doesn't use (kl, m3 and margin-mse do)", names)
        if rows.weighted and "scores" in used:
            log.warning("cosent and angle compare pairs and don't use the weights of records")
    if rows.short:
        log.info(
            "%d of %d rows have fewer than %d negatives; they are trained with those that they have",
            rows.short,
            len(rows),
            options.negatives,
        )
    if rows.longer:
        chosen = "the first are used" if options.draw == "first" else "a new draw is used in every epoch"
        log.info("%d of %d rows have more than %d negatives; %s", rows.longer, len(rows), options.negatives, chosen)
    if options.accumulate > 1:
        log.info(
            "a step adds up %d batches of %d records; each batch has only its own in-batch negatives (batch_size=%d "
            "would have them all, and takes no more memory than there is)",
            options.accumulate,
            options.batch_size,
            options.accumulate * options.batch_size,
        )


def note_repeats(rows: TrainingPairs, count: int, dev: RetrievalData | None, first: bool) -> None:
    """Note queries that equal a positive of theirs, and dev queries that stand in train.

    Args:
        rows: Train.
        count: Its records.
        dev: What judges the training.
        first: Whether this process speaks for all.
    """
    if not first:
        return
    asked = np.array(sorted({short_key(text) for text in dev.queries.values()} if dev is not None else ()), np.uint64)
    if met := int(np.isin(asked, rows.query_keys).sum()):
        note_finding("dev repeats train", "dev", met, len(asked))
    if same := rows.asks_for_itself():
        note_finding("query is its positive", "train", same, count)


_LACKS = {
    "positives": "has nothing to tell positives from: no negatives are used, and none of the batch's either",
    "teacher": "has no scores (pos_scores, neg_scores) of positives and negatives; mine with `teacher`, use negatives",
    "scores": "has no scores (pos_scores, neg_scores)",
}


def _check_usable(name: str, task: str, usable: Counter[str], rows: int) -> None:
    needs = losses.trait(name, "needs")
    if needs not in _LACKS:  # of a plugin that doesn't say
        return
    which = f"task '{task}'" if task else "the data"
    if not usable[needs]:
        raise DataError(f"{which} {_LACKS[needs]}, so that {name} could learn nothing")
    if usable[needs] < rows:
        log.warning("%s: %d of %d rows have nothing that %s learns from", which, rows - usable[needs], rows, name)


def _losses(options: TrainOptions) -> Iterator[str]:
    for name in options.loss:
        if name not in losses:
            yield f"no loss '{name}'.{nearest(name, losses)}"
    if len(set(options.loss)) < len(options.loss):
        yield f"a loss is named twice: {', '.join(options.loss)}"
    if options.loss_weights and len(options.loss_weights) != len(options.loss):
        yield f"loss_weights has {len(options.loss_weights)} numbers for {len(options.loss)} losses"
    if options.partition == "apart" and {"query-query", "document-document"} & set(options.directions):
        yield "partition=apart goes only with query-document and document-query: the others hold no positive"
    if "query-document" not in options.directions:
        yield "directions must have query-document, which holds the positives"


def _together(options: TrainOptions) -> Iterator[str]:
    used = {name for task in ("", *options.tasks) for name in options.of_task(task).loss}
    if "info-nce" not in used:
        defaults = TrainOptions()
        for name in ("directions", "mask_margin", "label_smoothing", "partition"):
            if getattr(options, name) != getattr(defaults, name):
                yield f"{name} goes with the loss info-nce, not with {', '.join(sorted(used))}"
    if options.teacher_temperature != 1 and not {"kl", "m3"} & used:
        yield "teacher_temperature goes with the losses kl and m3"
    if options.lora and options.anchor and options.anchor_by == "weights":
        yield "anchor_by=weights holds on to weights that lora doesn't train; take anchor_by=embeddings"
    if options.anchor_by == "weights" and not options.anchor:
        yield "anchor_by goes with anchor, which is 0"
    if options.dense and options.anchor and options.anchor_by == "embeddings":
        yield "dense changes the embeddings' size, so they can't be held to the base's; take anchor_by=weights"
    if options.anchor and options.reinit_layers:
        yield "anchor holds on to the base, which reinit_layers leaves; take one of them"
    if options.task_heads and options.matryoshka:
        yield "matryoshka is for the embeddings, and task_heads put a map behind them; take one of them"
    if options.memory and (options.compile or int(os.environ.get("WORLD_SIZE", "1")) > 1):
        yield "memory is kept to by one process that doesn't compile; take gradient_cache and a smaller chunk_tokens"
    if options.shard:
        yield from _sharding(options)
    if options.gradient_cache and options.gradient_checkpointing:
        log.info("gradient_cache embeds twice and gradient_checkpointing once more: slow, for very little memory")


def _sharding(options: TrainOptions) -> Iterator[str]:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield "shard cuts the model into parts for several processes; start it by torchrun"
    if options.compile:
        yield "shard can't be used with compile"
    if options.precision in ("fp16", "fp8"):
        yield f"shard goes with precision bf16 or fp32, not with {options.precision}"
    if options.optimizer not in SHARDED_OPTIMIZERS:
        yield f"shard goes with the optimizers {', '.join(SHARDED_OPTIMIZERS)}, not with {options.optimizer}"


def _sizes(base: Path, options: TrainOptions) -> Iterator[str]:
    dimensions = options.dense or _dimensions(base)
    wrong = [width for width in options.matryoshka if not 0 < width < (dimensions or 10**9)]
    if wrong:
        yield f"matryoshka={','.join(map(str, wrong))}: sizes are below the embeddings' {dimensions}"


def _dimensions(base: Path) -> int | None:
    dimensions: int | None = None
    for kind, path in modules_of(base):
        config = read_object(path / "config.json") if (path / "config.json").is_file() else {}
        if kind == "Pooling":
            dimensions = config.get("word_embedding_dimension") or config.get("embedding_dimension")
        elif kind == "Dense":
            dimensions = config.get("out_features")
    return dimensions
