"""Tune an encoder on records and write it to a folder."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_cocktail.devices import choose_device, resolve_precision
from bge_cocktail.encoding import load_encoder
from bge_cocktail.errors import CocktailError, UsageError
from bge_cocktail.hub import model_folder
from bge_cocktail.layout import declared_prompts, make_portable, prompt_for, set_prompts
from bge_cocktail.options import Training
from bge_cocktail.outputs import new_folder, refuse_to_replace, require_space, write_json
from bge_cocktail.provenance import RUN_FILE, describe_run, hash_path, step_key
from bge_cocktail.records import Judged, Record, write_records
from bge_cocktail.training.checks import check_rows, check_training
from bge_cocktail.training.curves import write_curves
from bge_cocktail.training.fitting import fit
from bge_cocktail.training.processes import Processes, join_processes
from bge_cocktail.training.rows import TrainingRows, hash_judged, hash_records
from bge_cocktail.training.unfinished import begun_by_first

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from bge_cocktail.training.trainer import Trainer

log = logging.getLogger(__name__)


def train(
    base: str | Path,
    records: Sequence[Record],
    output: Path,
    options: Training | None = None,
    *,
    dev: Judged | None = None,
    general: Sequence[Path] = (),
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
    options = options or Training()
    refuse_to_replace(output, overwrite, [base])
    folder = model_folder(base)
    check_training(folder, options, general)
    rows = TrainingRows(records, options)
    processes = join_processes(options.device)
    check_rows(rows, options, processes.count)
    inputs = {str(base): hash_path(folder), "records": rows.hash, "dev": hash_judged(dev)}
    key = step_key("train", _what_counts(options), inputs)
    # weights and two moments of AdamW in each of four checkpoints (three kept, one being written), and the result
    require_space(output.parent, 13 * sum(file.stat().st_size for file in folder.rglob("*.safetensors")))

    started = time.monotonic()
    working = output.with_name(output.name + ".unfinished")
    with begun_by_first(processes, working, "training", key, resume=resume, overwrite=overwrite):
        trainer, prompts, length, finish = _prepare(folder, rows, options, working, processes, dev, general, report)
        found = fit(
            trainer,
            options,
            working,
            resume,
            lambda numbers, path: write_records([rows[number] for number in numbers], path),
        )
        model = trainer.model
        if options.shard:
            from bge_cocktail.training.sharding import whole

            weights = whole(model.state_dict(), keep=processes.is_first)
            if processes.is_first:
                model, finish = _model(folder, options, "cpu")
                model.load_state_dict(weights)
        device = choose_device(options.device)
        if processes.is_first:
            finish()
            described = {
                "inputs": inputs,
                "precision": resolve_precision(options.precision, device),
                "device": device,
                "seconds": time.monotonic() - started,
                "records": len(records),
                "rows": len(rows),
                "processes": processes.count,
            }
            _write(model, folder, output, options, prompts, length, found, described, overwrite)
            shutil.rmtree(working)
        processes.wait()
    return output


def training_key(base: str | Path, records: Sequence[Record], options: Training, dev: Judged | None) -> str:
    """The key that run.json of the same training has."""
    inputs = [hash_path(model_folder(base)), hash_records(records), hash_judged(dev)]
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


def _prepare(
    folder: Path,
    rows: TrainingRows,
    options: Training,
    working: Path,
    processes: Processes,
    dev: Judged | None,
    general: Sequence[Path],
    report: Callable[[int, float], None] | None,
) -> tuple[Trainer, dict[str, str], int | None, Callable[[], object]]:
    """The trainer, the prompts by role, the longest text that the model declares, and what merges adapters in."""
    from bge_cocktail.training.arguments import Setting
    from bge_cocktail.training.quick import keep_memory
    from bge_cocktail.training.trainer import make_trainer
    from bge_cocktail.training.watching import PRIMARY, watch

    device = choose_device(options.device)
    precision = resolve_precision(options.precision, device)
    if device == "cpu":
        keep_memory()
    model, finish = _model(folder, options, processes.device(device))
    length = model.max_seq_length
    if options.max_length:
        model.max_seq_length = options.max_length
    prompts = {
        role: prompt_for(folder, role) if chosen is None else chosen
        for role, chosen in (
            ("query", options.query_prompt),
            ("document", options.document_prompt),
            ("text", None),
        )
    }
    trainer = make_trainer(
        model,
        rows,
        options,
        prompts,
        working / "checkpoints",
        Setting(device, precision, processes.number, processes.count),
        metrics=watch(dev, general, options, prompts, precision),
        primary=PRIMARY if dev is not None else None,
        report=report,
    )
    if processes.count == 1:
        try:
            trainer.create_optimizer()
        except (ImportError, ValueError, TypeError, RuntimeError) as error:
            raise UsageError(f"optimizer {options.optimizer}: {str(error).splitlines()[0]}") from None
    return trainer, prompts, length, finish


def _what_counts(options: Training) -> dict[str, Any]:
    """The options that name a training; how the model is shared out changes nothing in what it learns."""
    return options.model_dump(mode="json", exclude={"shard"})


def _model(folder: Path, options: Training, device: str) -> tuple[SentenceTransformer, Callable[[], object]]:
    """The model as it is trained, and what merges adapters in."""
    from bge_cocktail.training.parameters import prepare_parameters

    model = load_encoder(folder, device=device)
    return model, prepare_parameters(model, options, dense=options.dense)


def _write(
    model: SentenceTransformer,
    folder: Path,
    output: Path,
    options: Training,
    prompts: Mapping[str, str],
    length: int | None,
    found: Mapping[str, Any],
    described: Mapping[str, Any],
    overwrite: bool,
) -> None:
    from safetensors import SafetensorError

    new_prompts = {role: prompts[role] for role in ("query", "document")}
    if all(prompt == declared_prompts(folder).get(role, "") for role, prompt in new_prompts.items()):
        new_prompts = {}
    with new_folder(output, overwrite=overwrite) as new:
        try:
            save_encoder(model, new, like=folder, prompts=new_prompts, length=length)
        except SafetensorError as error:  # it isn't an OSError, not even on a full disk
            raise CocktailError(f"{output} could not be written: {error}") from error
        write_curves(found["curves"], new)
        more = {name: value for name, value in found.items() if name != "curves"}
        run = describe_run("train", options=_what_counts(options), **described, shard=options.shard, **more)
        write_json(new / RUN_FILE, run)
