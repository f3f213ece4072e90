"""A classifier: an encoder with a head, and what must be known to predict with it as it was trained."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from bge_cocktail.core.devices import choose_device
from bge_cocktail.core.errors import CocktailError, DataError, UsageError
from bge_cocktail.core.outputs import read_object
from bge_cocktail.models.encoder import CANT_LOAD, check_loaded, load_encoder, quiet_libraries, weight_files, why_not
from bge_cocktail.models.folder import config_labels, declared_labels, is_classifier, is_native, model_folder
from bge_cocktail.models.layout import (
    CLASSIFIER_FILE,
    TOKENIZER_FILES,
    check_length,
    declared_length,
    tokenizer_length,
    transformer_folder,
)
from bge_cocktail.options import ClassifyOptions, Options, checked

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder


class ClassifierConfig(Options):
    """What a classifier must know beside its weights; kept as classifier.json in its folder.

    Attributes:
        labels: Names of the classes, in the order of the logits.
        pairs: Whether it takes pairs of texts; None where nothing says it.
        multi_label: Whether a text may have any number of labels.
        max_length: Longest text (or pair) in tokens.
        truncation: What stays of longer ones.
        clean: Steps that every text goes through.
        temperature: Divides logits for calibrated probabilities.
        threshold: Probability from which a label of several counts.
    """

    labels: list[str]
    pairs: bool | None = None
    multi_label: bool = False
    max_length: int = Field(512, ge=1)
    truncation: Literal["head", "head+tail"] = "head"
    clean: list[str] = Field([])
    temperature: float = Field(1.0, gt=0)
    threshold: float = Field(0.5, gt=0, lt=1)

    @model_validator(mode="after")
    def _labels_tell_classes_apart(self) -> ClassifierConfig:
        twice = next((name for name in self.labels if self.labels.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two classes are called '{twice}'")
        if len(self.labels) < (1 if self.multi_label else 2):
            raise ValueError("a classifier has two labels or more; a model of one score ranks or measures")
        return self


def read_config(folder: Path) -> ClassifierConfig:
    """Return the settings of a classifier; of one that isn't ours, what its config says.

    Raises:
        DataError: It is no classifier, or its settings are broken.
    """
    path = folder / CLASSIFIER_FILE
    if path.is_file():
        return _checked(path, read_object(path))
    path = folder / "config.json"
    config = read_object(path) if path.is_file() else {}
    names = config_labels(config)
    if not is_native(config, path) or not names:
        raise DataError(
            f"{folder} is no classifier: it has no classification head and no label names; "
            "make one of it: bge-cocktail classify train DATA -m MODEL -o FOLDER"
        )
    given = {
        "labels": names,
        "multi_label": config.get("problem_type") == "multi_label_classification",
        "max_length": declared_length(folder) or tokenizer_length(folder) or 512,
    }
    return _checked(path, given)


def _checked(path: Path, given: dict[str, object]) -> ClassifierConfig:
    try:
        settings: ClassifierConfig = checked(ClassifierConfig, given)
    except UsageError as error:
        raise DataError(f"{path}: {error}") from None
    return settings


log = logging.getLogger(__name__)
POOLED_DROPOUT = 0.1


@dataclass(frozen=True, slots=True)
class Classifier:
    """A loaded classifier.

    Attributes:
        model: Gives ``scores``, the logits, shape (texts, classes).
        settings: How texts come to it, and what its classes are called.
    """

    model: CrossEncoder
    settings: ClassifierConfig


def make_classifier(base: Path, labels: Sequence[str], options: ClassifyOptions, device: str) -> CrossEncoder:
    """Return an encoder with a new head.

    A base that is a classifier of the same labels keeps its head.

    Args:
        base: Folder of a plain transformers model, a sentence-transformers model or a classifier.
        labels: Names of the classes.
        options: Which head.
        device: Where it will be.

    Raises:
        UsageError: A pooled head on a model that doesn't say how it pools, or options of the other head.
        CocktailError: The model can't be loaded.
    """
    import torch

    quiet_libraries()
    check_length(base, options.max_length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        pooled = options.head == "pooled" or (options.head == "auto" and (base / "modules.json").is_file())
        model = _pooled(base, labels, options) if pooled else _native(base, labels, options)
    model.to(device)
    model.max_seq_length = options.max_length or declared_length(base) or model.max_seq_length
    return model


def keeps_head(base: Path, labels: Sequence[str]) -> bool:
    """Return whether a base is a classifier of these labels, whose head is tuned on."""
    return is_classifier(base) and declared_labels(base) == list(labels)


def head_parameters(model: CrossEncoder) -> list[str]:
    """Names of the parameters that are not the encoder's."""
    body = {id(parameter) for parameter in model[0].auto_model.base_model.parameters()}
    return [name for name, one in model.named_parameters() if id(one) not in body]


def save_classifier(model: CrossEncoder, settings: ClassifierConfig, folder: Path, *, like: Path) -> None:
    """Write a classifier to an existing empty folder.

    With a head of its own architecture it is a plain transformers folder; else a sentence-transformers one.

    Args:
        model: The model.
        settings: Kept beside it; labels and longest text also where transformers looks for them.
        folder: The folder.
        like: Where the tokenizer's files come from; tuning doesn't change them.
    """
    if len(model) > 1:
        model.save_pretrained(str(folder), create_model_card=False)
    else:
        model[0].auto_model.save_pretrained(folder)
    tokenizer = transformer_folder(like)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    path = folder / "tokenizer_config.json"
    described = read_object(path) if path.is_file() else {}
    path.write_text(json.dumps({**described, "model_max_length": settings.max_length}, indent=2) + "\n")
    (folder / CLASSIFIER_FILE).write_text(json.dumps(settings.model_dump(), ensure_ascii=False, indent=2) + "\n")


def load_classifier(name: str | Path, *, device: str = "auto") -> Classifier:
    """Load a classifier of ours, or any of transformers' (``*ForSequenceClassification``).

    Raises:
        DataError: The model has no labels, or is no classifier.
        CocktailError: It can't be loaded.
    """
    folder = model_folder(name)
    settings = read_config(folder)
    quiet_libraries()
    model = _load(folder, device=choose_device(device))
    model.max_seq_length = settings.max_length
    model.eval()
    if model.num_labels != len(settings.labels):
        raise DataError(f"{folder}: the head has {model.num_labels} classes, {len(settings.labels)} are named")
    return Classifier(model, settings)


def _native(base: Path, labels: Sequence[str], options: ClassifyOptions) -> CrossEncoder:
    """Return the architecture's own head (AutoModelForSequenceClassification)."""
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer

    if options.head_layers > 1:
        raise UsageError("head_layers goes with head=pooled; the architecture's own head has the layers that it has")
    folder = transformer_folder(base)
    config = read_object(folder / "config.json")
    known = config_labels(config)
    kept = is_native(config) and known == list(labels)
    described: dict[str, Any] = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: number for number, name in enumerate(labels)},
        "problem_type": f"{'multi' if options.multi_label else 'single'}_label_classification",
    }
    try:
        transformer = Transformer(
            str(folder),
            transformer_task="sequence-classification",
            config_kwargs={**described, "local_files_only": True},
            model_kwargs={
                "dtype": torch.float32,
                **weight_files(folder),
                "local_files_only": True,
                "ignore_mismatched_sizes": not kept,
            },
            processor_kwargs={"local_files_only": True},
        )
    except CANT_LOAD as error:
        raise CocktailError(f"{base}: no classification head can be put on it: {why_not(error)}") from error
    whole = transformer.auto_model
    try:
        check_loaded(base, base, whole.base_model, transformer.tokenizer)
    except DataError as error:  # such as an encoder of an architecture whose heads stand on its decoder
        pooled = "; head=pooled needs no more than the encoder" if (base / "modules.json").is_file() else ""
        raise DataError(f"{error}{pooled}") from None
    if is_native(config) and not kept:
        log.info("%s has a head for other labels (%s); it starts afresh", base, ", ".join(known[:5]))
        for name, module in whole.named_children():
            if module is not whole.base_model:
                log.debug("%s starts afresh", name)
                module.apply(_start_afresh(whole))
    if options.head_dropout is not None:
        _set_head_dropout(whole, options.head_dropout)
    return CrossEncoder(modules=[transformer], device="cpu")


def _pooled(base: Path, labels: Sequence[str], options: ClassifyOptions) -> CrossEncoder:
    """A head on the embedding as the model pools it, without the unit norm, which would slow the head's learning.

    A base with such a head keeps it if its labels are the same, and gets another last layer if not.
    """
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.models import Dropout, Normalize

    if not (base / "modules.json").is_file():
        raise UsageError(f"head=pooled: {base} doesn't say how it pools; take head=cls")
    if is_classifier(base):
        if options.head_layers > 1 or options.head_dropout is not None:
            raise UsageError(f"head_layers and head_dropout are for a new head; {base} has one")
        model = _load(base, device="cpu")
        if declared_labels(base) == list(labels):
            return model
        log.info("%s has a head for other labels; its last layer starts afresh", base)
        *modules, replaced = model
        size = replaced.in_features
    else:
        encoder = load_encoder(base, device="cpu")
        size = encoder.get_embedding_dimension()
        modules = [module for module in encoder if not isinstance(module, Normalize)]
        for _ in range(options.head_layers - 1):
            modules.append(Dense(size, size, activation_function=torch.nn.Tanh()))
        modules.append(Dropout(POOLED_DROPOUT if options.head_dropout is None else options.head_dropout))
    last = Dense(
        size,
        len(labels),
        activation_function=torch.nn.Identity(),
        module_input_name="sentence_embedding",
        module_output_name="scores",
    )
    return CrossEncoder(modules=[*modules, last], device="cpu")


def _load(folder: Path, device: str) -> CrossEncoder:
    import torch
    from sentence_transformers import CrossEncoder

    try:
        model = CrossEncoder(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": torch.float32, **weight_files(transformer_folder(folder))},
        )
    except CANT_LOAD as error:
        raise CocktailError(f"{folder}: the classifier can't be loaded: {why_not(error)}") from error
    check_loaded(folder, folder, model[0].auto_model, model.tokenizer)
    return model


def _start_afresh(whole: Any) -> Any:
    def begin(module: Any) -> None:
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = False
        module._is_hf_initialized = False
        whole._init_weights(module)

    return begin


def _set_head_dropout(whole: Any, rate: float) -> None:
    import torch

    changed = False
    body = set(whole.base_model.modules())
    for module in whole.modules():
        if module not in body and isinstance(module, torch.nn.Dropout):
            module.p, changed = rate, True
    if not changed:
        raise UsageError(f"head_dropout={rate:g}: the head has no dropout to change")
