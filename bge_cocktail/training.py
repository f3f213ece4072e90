"""Tune an encoder on records, with sentence-transformers' trainer."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_cocktail.devices import choose_device, resolve_precision
from bge_cocktail.encoding import LoadedEncoder, load_encoder
from bge_cocktail.errors import CocktailError, UsageError
from bge_cocktail.hub import model_folder
from bge_cocktail.layout import declared_prompts, make_portable, prompt_for, set_prompts
from bge_cocktail.losses import training_rows
from bge_cocktail.options import Training
from bge_cocktail.provenance import (
    RUN_FILE,
    describe_run,
    finished_key,
    hash_path,
    hash_value,
    new_folder,
    refuse_to_replace,
    require_space,
    step_key,
    write_json,
)
from bge_cocktail.records import Judged, Record
from bge_cocktail.records.beir import sample_judged
from bge_cocktail.tasks.retrieval import judge
from bge_cocktail.training_checks import check_rows, check_training

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from bge_cocktail.trainer import Trainer

log = logging.getLogger(__name__)
CURVES_FILE = "curves.jsonl"
DEV_METRIC = "nDCG@10"


def train(
    base: str | Path,
    records: Sequence[Record],
    output: Path,
    options: Training | None = None,
    *,
    dev: Judged | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Tune a model and write it to a folder.

    While it runs, checkpoints are in ``<output>.unfinished``; a run that was cut off goes on from the last of
    them with `resume`. The finished folder holds the best checkpoint by dev nDCG@10 (the last without dev) in the
    portable layout, the curves of loss and dev metric, and what made it.

    Args:
        base: Folder or hub name of the model to tune.
        records: What to tune on; each needs a positive, negatives are optional.
        output: The folder to write.
        options: How to tune.
        dev: A retrieval task for early stopping.
        resume: Go on from the last checkpoint, if there is one.
        overwrite: Replace an older output of this tool.

    Returns:
        `output`.

    Raises:
        UsageError: Options that can't go together, or an output that exists.
        CocktailError: An unfinished run of other inputs is in the way, or the loss is no longer finite.
    """
    options = options or Training()
    refuse_to_replace(output, overwrite, [base])
    folder = model_folder(base)
    check_training(folder, options)
    left_out = sum(record.weight == 0 for record in records)
    if left_out:
        log.warning("%d records have weight 0 and are left out", left_out)
    rows = training_rows(records)
    check_rows(rows, options)
    if any(record.pos_scores or record.neg_scores for record in records):
        log.warning("the records have teacher scores, which this loss doesn't use")
    inputs = {str(base): hash_path(folder), "records": _hash_records(records), "dev": _hash_dev(dev)}
    key = step_key("train", options.model_dump(mode="json"), inputs)
    # weights and two moments of AdamW in each of three checkpoints (two kept, one being written), and the result
    require_space(output.parent, 10 * _weights_size(folder))

    from safetensors import SafetensorError

    from bge_cocktail.trainer import make_trainer

    started = time.monotonic()
    model = load_encoder(folder, device=options.device)
    declared_length = model.max_seq_length
    if options.max_length:
        model.max_seq_length = options.max_length
    prompts = {
        role: prompt_for(folder, role) if chosen is None else chosen
        for role, chosen in (("query", options.query_prompt), ("document", options.document_prompt))
    }
    device = choose_device(options.device)
    precision = resolve_precision(options.precision, device)
    dev_metric = _dev_metric(dev, options, prompts, precision) if dev is not None else None
    working = _working_folder(output, key, resume)
    trainer = make_trainer(model, rows, options, prompts, dev_metric, working / "checkpoints", precision, device)
    history = {"precision": precision, "device": device, **_fit(trainer, working / "checkpoints", resume)}
    model.max_seq_length = declared_length

    if all(prompt == declared_prompts(folder).get(role, "") for role, prompt in prompts.items()):
        prompts = {}
    with new_folder(output, overwrite=overwrite) as new:
        try:
            save_encoder(model, new, like=folder, prompts=prompts)
        except SafetensorError as error:  # it isn't an OSError, not even on a full disk
            raise CocktailError(f"{output} could not be written: {error}") from error
        lines = [json.dumps(point) for point in history["curves"]]
        (new / CURVES_FILE).write_text("\n".join(lines) + "\n")
        more = {name: value for name, value in history.items() if name != "curves"}
        write_json(
            new / RUN_FILE,
            describe_run(
                "train",
                options=options.model_dump(mode="json"),
                inputs=inputs,
                seconds=time.monotonic() - started,
                records=len(records),
                rows=len(rows),
                **more,
            ),
        )
    shutil.rmtree(working)
    return output


def training_key(base: str | Path, records: Sequence[Record], options: Training, dev: Judged | None) -> str:
    """The key that run.json of the same training has."""
    inputs = [hash_path(model_folder(base)), _hash_records(records), _hash_dev(dev)]
    return step_key("train", options.model_dump(mode="json"), dict(zip("abc", inputs, strict=True)))


def save_encoder(model: SentenceTransformer, folder: Path, *, like: Path, prompts: dict[str, str]) -> None:
    """Write a model in the portable layout.

    Args:
        model: The model.
        folder: An existing empty folder.
        like: The folder it was tuned from, for its tokenizer files.
        prompts: Prompts to store, by name.
    """
    model.save_pretrained(str(folder), create_model_card=False)
    make_portable(folder, max_length=model.max_seq_length, tokenizer_from=like)
    if prompts:
        set_prompts(folder, prompts)


def _fit(trainer: Trainer, checkpoints: Path, resume: bool) -> dict[str, Any]:
    """Run the trainer; the model ends with its best weights."""
    from safetensors import SafetensorError

    from bge_cocktail.trainer import explain_failure, weights_of_checkpoint

    last = last_checkpoint(checkpoints) if resume else None
    if resume and last is None:
        log.warning("no complete checkpoint in %s; the training starts from the beginning", checkpoints)
    # a resumed run has judged its start already; judging it again would count against its patience
    trainer.args.eval_on_start &= last is None
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except (RuntimeError, SafetensorError) as error:
        explain_failure(error, trainer)
        raise
    state = trainer.state
    if state.best_model_checkpoint:
        # the trainer only logs it when the best weights can't be loaded: read them here, where errors count
        weights_of_checkpoint(trainer.model, Path(state.best_model_checkpoint))
    curves = [_curve_point(entry) for entry in state.log_history if "loss" in entry or _DEV_KEY in entry]
    losses = [point["loss"] for point in curves if "loss" in point]
    if not losses or not all(math.isfinite(loss) for loss in losses):
        raise CocktailError("the loss became NaN or infinite; a lower learning rate or fp32 may help")
    developed = [point for point in curves if "dev" in point]
    if developed and state.best_metric is not None and state.best_metric <= developed[0]["dev"]:
        log.warning(
            "tuning did not raise dev %s (base %.4f, best %.4f): try another learning rate, temperature or negatives",
            DEV_METRIC,
            developed[0]["dev"],
            state.best_metric,
        )
    return {
        "steps": state.global_step,
        "best_step": state.best_global_step if developed else state.global_step,
        "dev_before": developed[0]["dev"] if developed else None,
        "dev_best": state.best_metric if developed else None,
        "final_loss": losses[-1],
        "curves": curves,
    }


_DEV_KEY = f"eval_dev_{DEV_METRIC}"


def _curve_point(entry: dict[str, Any]) -> dict[str, Any]:
    point = {"step": entry["step"], "epoch": round(entry.get("epoch", 0), 4)}
    if "loss" in entry:
        return {**point, "loss": entry["loss"], "learning_rate": entry["learning_rate"]}
    return {**point, "dev": entry[_DEV_KEY]}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; one cut off while it was written is passed over."""
    complete = [
        path
        for path in folder.glob("checkpoint-*")
        # the trainer's state is the last file of a checkpoint that the trainer writes
        if all((path / name).is_file() for name in ("trainer_state.json", "optimizer.pt", "rng_state.pth"))
    ]
    return max(complete, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def _dev_metric(
    dev: Judged, options: Training, prompts: dict[str, str], precision: str
) -> Callable[[SentenceTransformer], float]:
    smaller = sample_judged(dev, queries=options.dev_queries, documents=options.dev_documents, seed=options.seed)

    def metric(model: SentenceTransformer) -> float:
        encoder = LoadedEncoder(
            model,
            query_prompt=prompts["query"],
            document_prompt=prompts["document"],
            precision="bf16" if precision == "bf16" else "fp32",
        )
        values = judge(encoder, smaller)[DEV_METRIC]
        return sum(values.values()) / len(values)

    return metric


def _working_folder(output: Path, key: str, resume: bool) -> Path:
    working = output.with_name(output.name + ".unfinished")
    if working.exists():
        same = finished_key(working) == key
        if resume and not same:
            raise CocktailError(
                f"{working} was made from other records, options or another model; remove it, or run without --resume"
            )
        if not resume:
            if finished_key(working) is None:
                raise UsageError(f"{working} is in the way and is not a training of bge-cocktail; remove it")
            log.warning("an unfinished training in %s is started again (--resume would go on with it)", working)
            shutil.rmtree(working)
    working.mkdir(parents=True, exist_ok=True)
    write_json(working / RUN_FILE, {"command": "train", "key": key, "unfinished": True})
    return working


def _weights_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def _hash_records(records: Sequence[Record]) -> str:
    return hash_value([record.to_json() for record in records])


def _hash_dev(dev: Judged | None) -> str:
    return hash_value([dict(dev.corpus), dict(dev.queries), dict(dev.qrels)] if dev else None)
