"""Give an encoder a classification head and train both; of few texts, on pairs of one class (SetFit)."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_cocktail.core.devices import choose_device, resolve_precision
from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.core.outputs import new_file, new_folder, refuse_to_replace, write_json
from bge_cocktail.core.runs import RUN_FILE, describe_run, hash_path, step_key
from bge_cocktail.data.examples import LabelledText, records_from_labels
from bge_cocktail.data.labelled import LabelledTexts
from bge_cocktail.data.record import Record
from bge_cocktail.models.card import Parent, shown_name, write_card
from bge_cocktail.models.encoder import LoadedEncoder, load_encoder
from bge_cocktail.models.folder import model_folder
from bge_cocktail.options import ClassifyOptions, CommonTrainOptions, PredictOptions, TrainOptions
from bge_cocktail.training.classifier.data import ClassifierData, sample_per_class, with_augmented
from bge_cocktail.training.classifier.evaluate import calibration_temperature, dev_metrics
from bge_cocktail.training.classifier.model import (
    ClassifierConfig,
    head_parameters,
    keeps_head,
    make_classifier,
    save_classifier,
)
from bge_cocktail.training.classifier.predict import logits_of
from bge_cocktail.training.classifier.probe import begin_with_probe, fit_logistic
from bge_cocktail.training.encoder.train import train
from bge_cocktail.training.engine.parameters import common_problems
from bge_cocktail.training.engine.processes import Processes, join_processes
from bge_cocktail.training.engine.run import CURVES_FILE, Training, describe_training, run_training, write_curves

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

    from bge_cocktail.training.engine.trainer import Trainer

_NOT_FEW_SHOT = (
    "head",
    "head_layers",
    "head_dropout",
    "head_learning_rate",
    "head_start",
    "loss",
    "label_smoothing",
    "multi_label",
    "anchor",
    "freeze_encoder",
    "truncation",
)


def check_classifying(folder: Path, options: ClassifyOptions) -> None:
    """Refuse options that can't go together, or with the model.

    Raises:
        UsageError: All that is wrong.
    """
    problems = []
    if options.focal_gamma != 2 and options.loss != "focal":
        problems.append("focal_gamma goes with loss=focal")
    if options.threshold != 0.5 and not options.multi_label:
        problems.append("threshold goes with multi_label: without it, the likeliest label is predicted")
    if options.freeze_encoder and (options.lora or options.anchor or options.freeze_layers or options.reinit_layers):
        problems.append("freeze_encoder keeps the encoder as it is; lora, anchor, freeze_layers, reinit_layers don't")
    if options.few_shot:
        problems += [
            f"{name} goes with a head that is tuned; leave it out, or few_shot, which fits a logistic one"
            for name in _NOT_FEW_SHOT
            if getattr(options, name) != getattr(ClassifyOptions(), name)
        ]
        if options.patience != ClassifyOptions().patience:
            problems.append("patience does nothing in few_shot, which doesn't watch dev")
    elif options.pairs_per_text != ClassifyOptions().pairs_per_text:
        problems.append("pairs_per_text goes with few_shot")
    if not options.augment:
        problems += [
            f"{name} goes with augment"
            for name in ("augment_share", "word_share", "thesaurus", "wordnet_dir", "thesaurus_file")
            if getattr(options, name) != getattr(ClassifyOptions(), name)
        ]
    problems += common_problems(folder, options)
    if problems:
        raise UsageError("\n".join(problems))


def check_data(data: ClassifierData, options: ClassifyOptions) -> None:
    """Refuse data that a training can't learn from, or that options do nothing for.

    Raises:
        UsageError: An option is for single texts, and these are pairs.
        DataError: All weights are zero; in few_shot, a class has fewer than two texts.
    """
    if data.pairs and options.truncation != "head":
        raise UsageError("truncation=head+tail is for single texts; of a pair, the longer text loses its end first")
    if data.pairs and options.few_shot:
        raise UsageError("few_shot is for single texts; pairs need a head that is tuned")
    if not any(data.train.weights):
        raise DataError("all texts of train have the weight 0, so nothing would be learned")
    if options.few_shot:
        counts = Counter(number for own in data.train.labels for number in own)
        lacking = [name for number, name in enumerate(data.names) if counts[number] < 2]
        if lacking:
            raise DataError(
                f"few_shot makes pairs of texts of one class, and train has fewer than two of '{lacking[0]}'"
                + (f" and {len(lacking) - 1} more classes" if lacking[1:] else "")
            )


# the contrast with one text of another class at a time, as SetFit has it
NEGATIVES = 1


def pairs_of_classes(data: ClassifierData, count: int, seed: int) -> list[Record]:
    """Records of two texts of one class, with a text of another as negative (Tunstall et al., arXiv:2209.11055).

    Args:
        data: Single texts, one label each.
        count: Records of each text.
        seed: Seeds the draws.
    """
    texts = [text for text in data.train.texts if isinstance(text, str)]
    labels = [data.names[own[0]] for own in data.train.labels]
    rows = zip(texts, labels, data.train.weights, strict=True)
    examples = [LabelledText(text, label, extra={"weight": weight}) for text, label, weight in rows]
    dropped: Counter[str] = Counter()
    return [
        record
        for turn in range(count)
        for record in records_from_labels(examples, negatives=NEGATIVES, seed=seed + turn, dropped=dropped)
    ]


def train_on_pairs(
    base: Path, data: ClassifierData, output: Path, options: ClassifyOptions, resume: bool, overwrite: bool
) -> Path:
    """Tune an encoder, without prompts, so that texts of one class come together.

    Args:
        base: A sentence-transformers folder.
        data: What it is tuned on.
        output: The folder to write.
        options: Course, parameters, precision, device.
        resume: Go on from the last checkpoint.
        overwrite: Remove what was begun, however far it came.
    """
    records = pairs_of_classes(data, options.pairs_per_text, options.seed)
    shared = {name: getattr(options, name) for name in CommonTrainOptions.model_fields}
    own = {"negatives": NEGATIVES, "query_prompt": "", "document_prompt": ""}
    shared["batch_size"] = min(options.batch_size, len(records))
    training = TrainOptions.model_validate({**shared, **own})
    # a finished encoder is there if the head could not be fitted
    return train(base, records, output, training, resume=resume, overwrite=overwrite or output.is_dir())


def fit_head(tuned: Path, data: ClassifierData, options: ClassifyOptions) -> CrossEncoder:
    """Return a logistic head on the embeddings of train, put behind the encoder.

    Args:
        tuned: The encoder.
        data: Train, one label each.
        options: Device, length, class weights.
    """
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense

    encoder = load_encoder(tuned, device=options.device, max_length=options.max_length)
    texts = [text for text in data.train.texts if isinstance(text, str)]
    embeddings = LoadedEncoder(encoder).encode_text(texts)  # without prompts, as it will predict
    classes = len(data.names)
    weight, bias = map(torch.from_numpy, fit_logistic(embeddings, data.train, classes, options))
    head = Dense(
        embeddings.shape[1],
        classes,
        activation_function=torch.nn.Identity(),
        module_input_name="sentence_embedding",
        module_output_name="scores",
    )
    head.linear.weight.data, head.linear.bias.data = weight, bias
    return CrossEncoder(modules=[*encoder, head], device=str(encoder.device))


log = logging.getLogger(__name__)


def train_classifier(
    base: str | Path,
    data: ClassifierData,
    output: Path,
    options: ClassifyOptions | None = None,
    *,
    datasets: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[int, float], None] | None = None,
) -> Path:
    """Give an encoder a head, tune both on labelled texts and write the classifier to a folder.

    Checkpoints, resuming, stopping and several processes are as in `training.encoder.train.train`. The finished folder
    holds the best checkpoint by dev, and what a prediction needs: label names, cleaning, longest text, temperature.

    Args:
        base: Folder or hub name of an encoder, a plain transformers model or a classifier.
        data: From `read_class_data`.
        output: The folder to write.
        options: How to tune.
        datasets: What the data are called, for run.json and the model card: hub names, files, folders.
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
    options = options or ClassifyOptions()
    refuse_to_replace(output, overwrite, [base])
    folder = model_folder(base)
    check_classifying(folder, options)
    data = with_augmented(sample_per_class(data, options), options)
    check_data(data, options)
    if options.few_shot:
        return _few_shot(folder, str(base), data, output, options, datasets, resume, overwrite)
    processes = join_processes(options.device)
    chosen, used = options, data

    def write(prepared: _Prepared, model: CrossEncoder, seen: dict[str, Any], described: dict[str, Any]) -> None:
        described |= {"probe": prepared.probe} if prepared.probe else {}
        described |= {"datasets": [shown_name(name) for name in datasets]} if datasets else {}
        write_classifier(model, used, output, chosen, described, seen, like=folder, overwrite=overwrite)

    training = Training(
        "classify train",
        folder,
        {str(base): hash_path(folder), "data": data.hash},
        training_key(base, data, options),
        prepare=lambda working: _prepare(folder, used, chosen, working, processes, report),
        write=write,
        write_rows=lambda rows, path: _write_rows(used, rows, path),
        keeps_start=True,
    )
    return run_training(training, output, options, processes, resume=resume, overwrite=overwrite)


def training_key(base: str | Path, data: ClassifierData, options: ClassifyOptions) -> str:
    """Return the key that run.json of the same training has."""
    inputs = {"base": hash_path(model_folder(base)), "data": data.hash}
    return step_key("classify train", options.model_dump(mode="json"), inputs)


def write_classifier(
    model: CrossEncoder,
    data: ClassifierData,
    output: Path,
    options: ClassifyOptions,
    described: dict[str, Any],
    result: dict[str, Any],
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
    settings = ClassifierConfig(
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
        write_curves(result["curves"], new)
        described |= {name: value for name, value in result.items() if name not in ("curves", "general")}
        run = describe_run("classify train", options=options.model_dump(mode="json"), **described)
        parent = Parent(next(iter(described["inputs"])), like)
        made = describe_training(parent.name, run, ClassifyOptions())
        write_card(new, output.name, made, parents=[parent], relation="finetune", datasets=run.get("datasets", ()))
        write_json(new / RUN_FILE, run)


def _few_shot(
    folder: Path,
    base: str,
    data: ClassifierData,
    output: Path,
    options: ClassifyOptions,
    datasets: Sequence[str],
    resume: bool,
    overwrite: bool,
) -> Path:
    from bge_cocktail.training.engine.processes import refuse_several

    refuse_several("few_shot")
    started = time.monotonic()
    working = output.with_name(output.name + ".encoder")
    tuned = train_on_pairs(folder, data, working, options, resume, overwrite)
    model = fit_head(tuned, data, options)
    logits = logits_of(model, data.dev.texts, options.truncation, _predicting(options), "dev")
    metrics = dev_metrics(logits, data.dev, options)
    run = json.loads((tuned / RUN_FILE).read_text())
    curves = [json.loads(line) for line in (tuned / CURVES_FILE).read_text().splitlines()]
    result = {
        "steps": run["steps"],
        "best_step": run["steps"],
        "dev_before": None,
        "dev_best": metrics[options.metric],
        "final_loss": run["final_loss"],
        "curves": curves,
    }
    described: dict[str, Any] = {"inputs": {base: hash_path(folder), "data": data.hash}}
    described |= {"seconds": time.monotonic() - started}
    described |= {"datasets": [shown_name(name) for name in datasets]} if datasets else {}
    write_classifier(model, data, output, options, described, result, like=folder, overwrite=overwrite)
    shutil.rmtree(working)
    return output


@dataclass(frozen=True)
class _Prepared:
    """A trainer with its model, what merges adapters into it, and what the probe reached."""

    trainer: Trainer
    model: CrossEncoder
    merge_adapters: Callable[[], object]
    probe: dict[str, Any]

    def finish(self) -> CrossEncoder:
        """See `training.engine.run.Prepared`."""
        self.merge_adapters()
        return self.model


def _prepare(
    folder: Path,
    data: ClassifierData,
    options: ClassifyOptions,
    working: Path,
    processes: Processes,
    report: Callable[[int, float], None] | None,
) -> _Prepared:
    from bge_cocktail.models.packing import packer
    from bge_cocktail.training.classifier.loss import LabelCollator, LabelLoss, ShuffledBatches, class_weights
    from bge_cocktail.training.engine.callbacks import AnchorCallback
    from bge_cocktail.training.engine.parameters import learning_rates, prepare_parameters
    from bge_cocktail.training.engine.trainer import DeviceSetup, assemble

    device = choose_device(options.device)
    precision = resolve_precision(options.precision, device)
    model = make_classifier(folder, data.names, options, processes.device(device))
    new_head = not keeps_head(folder, data.names)
    probe = begin_with_probe(model, data, options, _predicting(options)) if new_head else {}
    merge_adapters = prepare_parameters(model, options)
    head = head_parameters(model)
    if options.freeze_encoder:
        model[0].auto_model.base_model.requires_grad_(False)
    rates = learning_rates(model, options)
    if options.head_learning_rate is not None:
        rates |= {rf"\b{re.escape(name)}$": options.head_learning_rate for name in head}
    classes = len(data.names)
    pack = packer(model, options.packed, precision, compiled=options.compile)
    process = (processes.number, processes.count)
    trainer = assemble(
        model,
        options,
        working / "checkpoints",
        DeviceSetup(device, precision, *process),
        batches=ShuffledBatches(len(data.train), options.batch_size * process[1], options.seed, process[1]),
        rows=len(data.train),
        loss=LabelLoss(model, options, class_weights(data.train, classes, options), process[1]),
        collator=LabelCollator(model, data.train, classes, options, process, precision, pack),
        rates=rates,
        metrics=partial(_watch, data.dev, options),
        primary=f"dev_{options.metric}",
        report=report,
        more_callbacks=[AnchorCallback(options.anchor, model[0].auto_model.base_model)] if options.anchor else [],
    )
    return _Prepared(trainer, model, merge_adapters, probe)


def _watch(dev: LabelledTexts, options: ClassifyOptions, model: Any) -> dict[str, float]:
    logits = logits_of(model, dev.texts, options.truncation, _predicting(options), "dev")
    return {f"dev_{name}": value for name, value in dev_metrics(logits, dev, options).items()}


def _predicting(options: ClassifyOptions) -> PredictOptions:
    """Dev is judged in the training's own arithmetic, or in fp32 where predictions have no such one."""
    precision = options.precision if options.precision in ("auto", "bf16") else "fp32"
    return PredictOptions(device=options.device, precision=precision, packed=options.packed)


def _write_rows(data: ClassifierData, rows: Sequence[int], path: Path) -> None:
    """The texts of a batch, as JSON Lines that can be read again."""
    import orjson

    with new_file(path) as working, working.open("wb") as file:
        for row in rows:
            text, labels = data.train.texts[row], [data.names[number] for number in data.train.labels[row]]
            own = {"text": text} if isinstance(text, str) else {"premise": text[0], "hypothesis": text[1]}
            file.write(orjson.dumps({**own, "label": "|".join(labels)}) + b"\n")
