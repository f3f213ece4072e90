"""What of a model is no weight: prompts, longest text, tokenizer; taken from one model into another's folder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from bge_cocktail.hub import CLASSIFIER_FILE
from bge_cocktail.layout import TOKENIZER_FILES, declared_length, read_object, tokenizer_length, transformer_folder
from bge_cocktail.outputs import write_json

log = logging.getLogger(__name__)
SETTINGS = "config_sentence_transformers.json"
LENGTH = "sentence_bert_config.json"


def take_prompts(folder: Path, source: Path) -> None:
    """Give a model the prompts of another, and which of them is the default."""
    theirs = read_object(source / SETTINGS) if (source / SETTINGS).is_file() else {}
    mine = read_object(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    prompts = {name: theirs.get(name) for name in ("prompts", "default_prompt_name")}
    write_json(folder / SETTINGS, {**mine, **prompts, "prompts": prompts["prompts"] or {}})


def take_length(folder: Path, source: Path, classifier: bool) -> None:
    """Give a model the longest text length of another; classifiers keep it elsewhere."""
    if classifier:
        _take_classifiers_length(folder, source)
        return
    path = transformer_folder(folder) / LENGTH
    mine = read_object(path) if path.is_file() else {}
    write_json(path, {**mine, "max_seq_length": declared_length(source)})


def take_tokenizer(folder: Path, source: Path) -> None:
    """Give a model the tokenizer files of another, in place of its own."""
    for name in TOKENIZER_FILES:
        (transformer_folder(folder) / name).unlink(missing_ok=True)
        if (transformer_folder(source) / name).is_file():
            shutil.copyfile(transformer_folder(source) / name, transformer_folder(folder) / name)


def _take_classifiers_length(folder: Path, source: Path) -> None:
    theirs = source / CLASSIFIER_FILE
    length = read_object(theirs).get("max_length") if theirs.is_file() else declared_length(source)
    length = length or tokenizer_length(source)
    for name, key in ((CLASSIFIER_FILE, "max_length"), ("tokenizer_config.json", "model_max_length")):
        if (folder / name).is_file() and length is not None:
            write_json(folder / name, {**read_object(folder / name), key: length})


def forget_temperature(folder: Path) -> None:
    """Take away what calibrates a classifier's probabilities: it was found for other weights."""
    path = folder / CLASSIFIER_FILE
    if path.is_file() and read_object(path).get("temperature", 1.0) != 1.0:
        log.warning("the first model's calibration (a temperature) doesn't hold for the merge and is left out")
        write_json(path, {**read_object(path), "temperature": 1.0})
