"""Train an encoder on records and write it to a folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_cocktail.core.devices import choose_device, resolve_precision
from bge_cocktail.core.errors import CocktailError, UsageError
from bge_cocktail.core.outputs import new_folder, refuse_to_replace, write_json
from bge_cocktail.core.runs import RUN_FILE, begin_findings, describe_run, hash_path, step_key
from bge_cocktail.data.beir import RetrievalData
from bge_cocktail.data.record import Record
from bge_cocktail.data.record_files import spread, write_records
from bge_cocktail.evaluating.evaluate import TaskPath
from bge_cocktail.models.card import Parent, shown_name, write_card
from bge_cocktail.models.encoder import load_encoder
from bge_cocktail.models.folder import model_folder, sentence_transformers_folder
from bge_cocktail.models.layout import make_portable
from bge_cocktail.models.prompts import Prompts, declared_prompts, model_prompts, set_prompts
from bge_cocktail.options import TrainOptions
from bge_cocktail.training.encoder.checks import check_pairs, check_training, note_repeats
from bge_cocktail.training.encoder.training_pairs import TrainingPairs, hash_records, hash_retrieval
from bge_cocktail.training.encoder.validation import open_watched
from bge_cocktail.training.engine.processes import Processes, join_processes
from bge_cocktail.training.engine.run import Training, describe_training, run_training, write_curves

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from bge_cocktail.training.engine.trainer import Trainer

log = logging.getLogger(__name__)


def train(
    base: str | Path,
    records: Sequence[Record],
    output: Path,
    options: TrainOptions | None = None,
    *,
    dev: RetrievalData | None = None,
    general: Sequence[TaskPath] = (),
    datasets: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[int, float], None] | None = None,
) -> Path:
    """Tune a model and write it to a folder.

    While it runs, checkpoints are in ``<output>.unfinished``; a run that was cut off goes on from the last whole one
    with `resume`. The finished folder holds the best checkpoint by dev nDCG@10 (the last without dev) in the portable
    layout, the curves of losses and of what was watched, and what made it. Started by torchrun or accelerate, all
    processes work on the same batches, and the first one writes.

    Args:
        base: Folder or hub name of the model to tune.
        records: What to tune on; each needs a positive, negatives are optional.
        output: The folder to write.
        options: How to tune.
        dev: A retrieval task for early stopping.
        general: Folders of tasks that are watched, so that forgetting is seen as it happens.
        datasets: What the data are called, for run.json and the model card: hub names, files, folders.
        resume: Go on from the last checkpoint, if there is one.
        overwrite: Replace an older output of this tool.
        report: Is told the step and dev nDCG@10 of every evaluation; what it raises ends the training.

    Returns:
        `output`.

    Raises:
        UsageError: Options that can't go together, or an output that exists.
        CocktailError: An unfinished run of other inputs is in the way, or the loss is no longer finite.
        Interrupted: SIGTERM or Ctrl-C; a checkpoint was saved.
    """
    begin_findings()
    options = options or TrainOptions()
    refuse_to_replace(output, overwrite, [base])
    folder = sentence_transformers_folder(base)
    records = spread(records, options.limit)
    watched = open_watched(general)  # read once, by the checks and by all that is watched
    check_training(folder, options, watched)
    rows = TrainingPairs(records, options)
    processes = join_processes(options.device)
    check_pairs(rows, options, processes.count)
    note_repeats(rows, len(records), dev, processes.is_first)
    inputs = {str(base): hash_path(folder), "records": rows.hash, "dev": hash_retrieval(dev)}

    def write(prepared: _Prepared, model: SentenceTransformer, seen: dict[str, Any], described: dict[str, Any]) -> None:
        described |= {
            "precision": resolve_precision(options.precision, device),
            "device": device,
            "records": len(records),
            "rows": len(rows),
            **({"datasets": [shown_name(name) for name in datasets]} if datasets else {}),
        }
        _write(model, prepared, output, options, seen, described, overwrite=overwrite)

    device = choose_device(options.device)
    training = Training(
        "training",
        folder,
        inputs,
        step_key("train", _what_counts(options), inputs),
        prepare=lambda working: _prepare(folder, rows, options, working, processes, dev, watched, report),
        write=write,
        write_rows=lambda numbers, path: write_records([rows[number] for number in numbers], path),
    )
    return run_training(training, output, options, processes, resume=resume, overwrite=overwrite)


def training_key(base: str | Path, records: Sequence[Record], options: TrainOptions, dev: RetrievalData | None) -> str:
    """Return the key that run.json of the same training has."""
    inputs = [hash_path(model_folder(base)), hash_records(spread(records, options.limit)), hash_retrieval(dev)]
    return step_key("train", _what_counts(options), dict(zip("abc", inputs, strict=True)))


def save_encoder(
    model: SentenceTransformer, folder: Path, *, like: Path, prompts: Mapping[str, str], length: int | None
) -> None:
    """Write a model in the portable layout.

    Args:
        model: The model.
        folder: An existing empty folder.
        like: The folder it was tuned from, for its tokenizer files.
        prompts: Prompts to store, by name.
        length: Its longest text in tokens.
    """
    model.save_pretrained(str(folder), create_model_card=False)
    make_portable(folder, max_length=length, tokenizer_from=like)
    if prompts:
        set_prompts(folder, dict(prompts))


@dataclass(frozen=True)
class _Prepared:
    """A trainer, and what is needed to write its model.

    Attributes:
        trainer: Ready to run.
        folder: The base.
        options: How to tune.
        prompts: To store with the model.
        length: The longest text that the base declares, in tokens.
        processes: All that work on it.
        merge_adapters: Merges adapters into the model.
    """

    trainer: Trainer
    folder: Path
    options: TrainOptions
    prompts: Prompts
    length: int | None
    processes: Processes
    merge_adapters: Callable[[], object]

    def finish(self) -> SentenceTransformer:
        """See `training.engine.run.Prepared`."""
        if not self.options.shard:
            self.merge_adapters()
            model: SentenceTransformer = self.trainer.model
            return model
        from bge_cocktail.training.engine.checkpoints import whole

        weights = whole(self.trainer.model.state_dict(), keep=self.processes.is_first)
        if not self.processes.is_first:
            return self.trainer.model
        model, merge_adapters = _model(self.folder, self.options, "cpu")
        model.load_state_dict(weights)
        merge_adapters()
        return model


def _prepare(
    folder: Path,
    rows: TrainingPairs,
    options: TrainOptions,
    working: Path,
    processes: Processes,
    dev: RetrievalData | None,
    general: Sequence[TaskPath],
    report: Callable[[int, float], None] | None,
) -> _Prepared:
    """Return the trainer, with what is needed to write its model."""
    from bge_cocktail.training.encoder.loss import make_trainer
    from bge_cocktail.training.encoder.validation import make_validation
    from bge_cocktail.training.engine.run import PRIMARY
    from bge_cocktail.training.engine.trainer import DeviceSetup

    device = choose_device(options.device)
    precision = resolve_precision(options.precision, device)
    model, merge_adapters = _model(folder, options, processes.device(device))
    length = model.max_seq_length
    if options.max_length:
        model.max_seq_length = options.max_length
    prompts = model_prompts(folder, query=options.query_prompt, document=options.document_prompt)
    trainer = make_trainer(
        model,
        rows,
        options,
        prompts,
        working / "checkpoints",
        DeviceSetup(device, precision, processes.number, processes.count),
        metrics=make_validation(dev, general, options, prompts, precision),
        primary=PRIMARY if dev is not None else None,
        report=report,
    )
    if processes.count == 1:
        try:
            trainer.create_optimizer()
        except (ImportError, ValueError, TypeError, RuntimeError) as error:
            raise UsageError(f"optimizer {options.optimizer}: {str(error).splitlines()[0]}") from None
    return _Prepared(trainer, folder, options, prompts, length, processes, merge_adapters)


def _what_counts(options: TrainOptions) -> dict[str, Any]:
    """Return the options that name a training; where it has its memory changes nothing in what it learns."""
    return options.model_dump(mode="json", exclude={"shard", "memory"})


def _model(folder: Path, options: TrainOptions, device: str) -> tuple[SentenceTransformer, Callable[[], object]]:
    """Return the model as it is trained, and what merges adapters in."""
    from bge_cocktail.training.engine.parameters import prepare_parameters

    model = load_encoder(folder, device=device)
    return model, prepare_parameters(model, options, dense=options.dense)


def _write(
    model: SentenceTransformer,
    prepared: _Prepared,
    output: Path,
    options: TrainOptions,
    seen: Mapping[str, Any],
    described: Mapping[str, Any],
    *,
    overwrite: bool,
) -> None:
    from safetensors import SafetensorError

    new_prompts = {"query": prepared.prompts.query, "document": prepared.prompts.document}
    if all(prompt == declared_prompts(prepared.folder).get(role, "") for role, prompt in new_prompts.items()):
        new_prompts = {}
    with new_folder(output, overwrite=overwrite) as new:
        try:
            save_encoder(model, new, like=prepared.folder, prompts=new_prompts, length=prepared.length)
        except SafetensorError as error:  # it isn't an OSError, not even on a full disk
            raise CocktailError(f"{output} could not be written: {error}") from error
        write_curves(seen["curves"], new)
        more = {name: value for name, value in seen.items() if name != "curves"}
        run = describe_run(
            "train", options=_what_counts(options), **described, shard=options.shard, memory=options.memory, **more
        )
        parent = Parent(next(iter(described["inputs"])), prepared.folder)
        made = describe_training(parent.name, run, TrainOptions())
        write_card(new, output.name, made, parents=[parent], relation="finetune", datasets=run.get("datasets", ()))
        write_json(new / RUN_FILE, run)
