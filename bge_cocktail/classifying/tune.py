"""Give an encoder a classification head and tune both."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_cocktail.classifying.augmenting import with_varied
from bge_cocktail.classifying.checks import check_classifying, check_data
from bge_cocktail.classifying.data import ClassData, LabelledTexts, drawn
from bge_cocktail.classifying.metrics import calibration_temperature, dev_metrics
from bge_cocktail.classifying.model import head_parameters, make_classifier, save_classifier
from bge_cocktail.classifying.predicting import logits_of
from bge_cocktail.classifying.settings import Settings
from bge_cocktail.devices import choose_device, resolve_precision
from bge_cocktail.hub import model_folder
from bge_cocktail.options import Classifying, Predicting
from bge_cocktail.outputs import new_file, new_folder, refuse_to_replace, require_space, write_json
from bge_cocktail.provenance import RUN_FILE, describe_run, hash_path, step_key
from bge_cocktail.training.curves import CURVES_FILE, write_curves
from bge_cocktail.training.fitting import fit
from bge_cocktail.training.processes import Processes, join_processes
from bge_cocktail.training.unfinished import begun_by_first

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

    from bge_cocktail.training.trainer import Trainer

log = logging.getLogger(__name__)


def train_classifier(
    base: str | Path,
    data: ClassData,
    output: Path,
    options: Classifying | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[int, float], None] | None = None,
) -> Path:
    """Give an encoder a head, tune both on labelled texts and write the classifier to a folder.

    Checkpoints, resuming, stopping and several processes are as in `bge_cocktail.training.train`. The finished folder
    holds the best checkpoint by dev, and what a prediction needs: label names, cleaning, longest text, temperature.

    Args:
        base: Folder or hub name of an encoder, a plain transformers model or a classifier.
        data: From `read_class_data`.
        output: The folder to write.
        options: How to tune.
        resume: Go on from the last checkpoint, if there is one.
        overwrite: Replace an older output of this tool.
        report: Is told the step and the dev metric of every evaluation.

    Returns:
        `output`.

    Raises:
        UsageError: Options that can't go together, or not with the data; an output that exists.
        DataError: All weights are zero; in few_shot, a class has fewer than two texts.
        CocktailError: An unfinished run of other inputs is in the way, or the loss is no longer finite.
        Interrupted: SIGTERM or Ctrl-C; a checkpoint was saved.
    """
    options = options or Classifying()
    refuse_to_replace(output, overwrite, [base])
    folder = model_folder(base)
    check_classifying(folder, options)
    data = with_varied(drawn(data, options), options)
    check_data(data, options)
    if options.few_shot:
        return _few_shot(folder, str(base), data, output, options, resume, overwrite)
    processes = join_processes(options.device)
    inputs = {str(base): hash_path(folder), "data": data.hash}
    key = training_key(base, data, options)
    # weights and two moments of AdamW in each of four checkpoints (three kept, one being written), and the result
    require_space(output.parent, 13 * sum(file.stat().st_size for file in folder.rglob("*.safetensors")))

    started = time.monotonic()
    working = output.with_name(output.name + ".unfinished")
    with begun_by_first(processes, working, "classify train", key, resume=resume, overwrite=overwrite):
        model, trainer, finish = _prepare(folder, data, options, working, processes, report)
        found = fit(trainer, options, working, resume, lambda rows, path: _write_rows(data, rows, path))
        finish()
        if processes.is_first:
            described = {"inputs": inputs, "processes": processes.count, "seconds": time.monotonic() - started}
            write_classifier(model, data, output, options, described, found, like=folder, overwrite=overwrite)
            shutil.rmtree(working)
        processes.wait()
    return output


def training_key(base: str | Path, data: ClassData, options: Classifying) -> str:
    """The key that run.json of the same training has."""
    inputs = {"base": hash_path(model_folder(base)), "data": data.hash}
    return step_key("classify train", options.model_dump(mode="json"), inputs)


def write_classifier(
    model: CrossEncoder,
    data: ClassData,
    output: Path,
    options: Classifying,
    described: dict[str, Any],
    found: dict[str, Any],
    *,
    like: Path,
    overwrite: bool,
) -> None:
    """Write a trained classifier with its temperature by dev, its curves, and what made it.

    Args:
        model: The classifier.
        data: What it was trained on.
        output: The folder to write.
        options: How it was tuned.
        described: For run.json.
        found: What the training saw, as `history` gives it.
        like: Where the tokenizer's files come from.
        overwrite: Replace an older output of this tool.
    """
    device = choose_device(options.device)
    dev_logits = logits_of(model, data.dev.texts, options.truncation, _predicting(options))
    settings = Settings(
        labels=data.names,
        pairs=data.pairs,
        multi_label=options.multi_label,
        max_length=model.max_seq_length,
        truncation=options.truncation,
        clean=options.clean,
        temperature=calibration_temperature(dev_logits, data.dev, options.multi_label),
        threshold=options.threshold,
    )
    described |= {"precision": resolve_precision(options.precision, device), "device": device, "labels": data.names}
    described["texts"] = {"train": len(data.train), "dev": len(data.dev)}
    if data.test is not None and len(data.test):
        logits = logits_of(model, data.test.texts, options.truncation, _predicting(options))
        described["test"] = dev_metrics(logits, data.test, options)
    with new_folder(output, overwrite=overwrite) as new:
        save_classifier(model, settings, new, like=like)
        write_curves(found["curves"], new)
        described |= {name: value for name, value in found.items() if name not in ("curves", "general")}
        write_json(new / RUN_FILE, describe_run("classify train", options=options.model_dump(mode="json"), **described))


def _few_shot(
    folder: Path, base: str, data: ClassData, output: Path, options: Classifying, resume: bool, overwrite: bool
) -> Path:
    from bge_cocktail.classifying.few_shot import fit_head, tune_encoder
    from bge_cocktail.training.processes import refuse_several

    refuse_several("few_shot")
    started = time.monotonic()
    working = output.with_name(output.name + ".encoder")
    tuned = tune_encoder(folder, data, working, options, resume, overwrite)
    model = fit_head(tuned, data, options)
    logits = logits_of(model, data.dev.texts, options.truncation, _predicting(options), "dev")
    metrics = dev_metrics(logits, data.dev, options)
    run = json.loads((tuned / RUN_FILE).read_text())
    curves = [json.loads(line) for line in (tuned / CURVES_FILE).read_text().splitlines()]
    found = {
        "steps": run["steps"],
        "best_step": run["steps"],
        "dev_before": None,
        "dev_best": metrics[options.metric],
        "final_loss": run["final_loss"],
        "curves": curves,
    }
    described = {"inputs": {base: hash_path(folder), "data": data.hash}, "seconds": time.monotonic() - started}
    write_classifier(model, data, output, options, described, found, like=folder, overwrite=overwrite)
    shutil.rmtree(working)
    return output


def _prepare(
    folder: Path,
    data: ClassData,
    options: Classifying,
    working: Path,
    processes: Processes,
    report: Callable[[int, float], None] | None,
) -> tuple[CrossEncoder, Trainer, Callable[[], object]]:
    from bge_cocktail.classifying.batches import LabelCollator, LabelLoss, ShuffledBatches, class_weights
    from bge_cocktail.training.arguments import Setting
    from bge_cocktail.training.callbacks import AnchorCallback
    from bge_cocktail.training.parameters import learning_rates, prepare_parameters
    from bge_cocktail.training.quick import keep_memory
    from bge_cocktail.training.trainer import assemble

    device = choose_device(options.device)
    precision = resolve_precision(options.precision, device)
    if device == "cpu":
        keep_memory()
    model = make_classifier(folder, data.names, options, processes.device(device))
    finish = prepare_parameters(model, options)
    head = head_parameters(model)
    if options.freeze_encoder:
        model[0].auto_model.base_model.requires_grad_(False)
    rates = learning_rates(model, options)
    if options.head_learning_rate is not None:
        rates |= {rf"\b{re.escape(name)}$": options.head_learning_rate for name in head}
    classes = len(data.names)
    process = (processes.number, processes.count)
    trainer = assemble(
        model,
        options,
        working / "checkpoints",
        Setting(device, precision, *process),
        batches=ShuffledBatches(len(data.train), options.batch_size * process[1], options.seed, process[1]),
        rows=len(data.train),
        loss=LabelLoss(model, options, class_weights(data.train, classes, options)),
        collator=LabelCollator(model, data.train, classes, options, process, precision),
        rates=rates,
        metrics=partial(_watch, data.dev, options),
        primary=f"dev_{options.metric}",
        report=report,
        more_callbacks=[AnchorCallback(options.anchor, model[0].auto_model.base_model)] if options.anchor else [],
    )
    return model, trainer, finish


def _watch(dev: LabelledTexts, options: Classifying, model: Any) -> dict[str, float]:
    logits = logits_of(model, dev.texts, options.truncation, _predicting(options), "dev")
    return {f"dev_{name}": value for name, value in dev_metrics(logits, dev, options).items()}


def _predicting(options: Classifying) -> Predicting:
    """Dev is judged in the training's own arithmetic, or in fp32 where predictions have no such one."""
    precision = options.precision if options.precision in ("auto", "bf16") else "fp32"
    return Predicting(device=options.device, precision=precision)


def _write_rows(data: ClassData, rows: Sequence[int], path: Path) -> None:
    """The texts of a batch, as JSON Lines that can be read again."""
    import orjson

    with new_file(path) as working, working.open("wb") as file:
        for row in rows:
            text, labels = data.train.texts[row], [data.names[number] for number in data.train.labels[row]]
            own = {"text": text} if isinstance(text, str) else {"premise": text[0], "hypothesis": text[1]}
            file.write(orjson.dumps({**own, "label": "|".join(labels)}) + b"\n")
