"""From a model's name to its folder, and what a folder says of the labels that it predicts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bge_cocktail.core.devices import NETWORK_SECONDS, hub_answers
from bge_cocktail.core.errors import DataError, UsageError, near_path
from bge_cocktail.core.outputs import read_object, refuse_pipe
from bge_cocktail.core.runs import files_under
from bge_cocktail.models.layout import CLASSIFIER_FILE

# what a model needs; the look-up in the cache must ask for the same as the download
PATTERNS: dict[str, Any] = {
    "allow_patterns": ["*.json", "*.safetensors", "*.txt", "*.model"],
    "ignore_patterns": ["onnx/*", "openvino/*"],
}


def model_folder(name: str | Path) -> Path:
    """Return the local folder of a model.

    A folder is taken as it is, with no network call. A hub name is looked up in the local hub cache, and
    downloaded only if the hub answers within two seconds.

    Args:
        name: A folder, or a hub name such as ``BAAI/bge-small-en-v1.5``.

    Raises:
        DataError: The folder holds no model, or the hub name is neither cached nor within reach.
        UsageError: It is neither a folder nor the form of a hub name.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("modules.json", "config.json", "adapter_config.json")):
            raise DataError(
                f"{path} is not a model folder: it holds neither modules.json (sentence-transformers) "
                "nor config.json (transformers) nor adapter_config.json (LoRA)"
            )
        _refuse_weights_elsewhere(path)
        return path
    text = str(name)
    if path.exists():
        raise UsageError(f"{text} is a file; a model is a folder or a hub name such as BAAI/bge-small-en-v1.5")
    if text.count("/") > 1 or text.startswith((".", "/", "~")) or " " in text or not text:
        raise UsageError(f"no model folder at '{text}' (and it has not the form of a hub name, owner/name)")
    return _from_hub(text)


def _refuse_weights_elsewhere(folder: Path) -> None:
    """Refuse an index of shards that names files outside, and an adapter beside whole weights.

    Libraries would read the first, and fold in the second, though no hash of the folder sees them.
    """
    for path in folder.iterdir():
        refuse_pipe(path)
    for file in files_under(folder):
        if file.name.endswith(".index.json"):
            places = read_object(file).get("weight_map")
            for name in set(places.values()) if isinstance(places, dict) else ():
                if not isinstance(name, str) or Path(name).name != name:
                    raise DataError(f"{file}: the file name {name!r} leads out of the folder")
        elif file.name == "adapter_config.json" and (file.parent / "config.json").is_file():
            raise DataError(
                f"{file.parent} holds an adapter (adapter_config.json) beside a whole model, and libraries differ on "
                "which of them counts; fold it in (merge_and_unload of peft), or take it away"
            )


def refuse_export(name: str | Path, folder: Path) -> None:
    """Raise where a folder is an export that only our server reads.

    Raises:
        DataError: It is.
    """
    if (folder / "export.json").is_file() and not (folder / "modules.json").is_file():
        raise DataError(
            f"{name} is an export, which bge-cocktail serve reads; for anything else give the model that it was made of"
        )


def sentence_transformers_folder(name: str | Path) -> Path:
    """Return the local folder of a model that says how it pools.

    Raises:
        DataError: It is a plain transformers folder, or a classifier.
    """
    folder = model_folder(name)
    if (folder / CLASSIFIER_FILE).is_file():
        raise DataError(f"{name} is a classifier and no encoder; it is judged with: bge-cocktail classify evaluate")
    refuse_export(name, folder)
    if not (folder / "modules.json").is_file():
        kind = "plain transformers folder" if (folder / "config.json").is_file() else "LoRA adapter"
        raise DataError(
            f"{name} is a {kind} (no modules.json), so its pooling is unknown; make it a sentence-transformers folder "
            f"with the pooling it was trained with (cls, mean or lasttoken): "
            f"bge-cocktail merge {name} --pooling cls -o FOLDER"
        )
    return folder


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )
    from huggingface_hub.utils import validate_repo_id

    # sentence-transformers' own models are known by their bare names too
    given = name
    name = name if "/" in name else f"sentence-transformers/{name}"
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UsageError(f"no model folder at '{name}', and it has not the form of a hub name, owner/name") from None
    try:
        folder = Path(snapshot_download(name, local_files_only=True, **PATTERNS))
        # another program may have fetched only the configuration or the tokenizer; what kind of model and of weights
        # it is, is for others to judge
        if (folder / "config.json").is_file() and any(any(folder.rglob(kind)) for kind in ("*.safetensors", "*.bin")):
            return folder
    except (LocalEntryNotFoundError, FileNotFoundError):
        pass
    if near := near_path(given):
        raise DataError(f"no model folder '{given}' is here, nor in the local hub cache.{near}")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise DataError(
            f"no folder '{given}' is here, and '{name}' is not in the local hub cache and HF_HUB_OFFLINE is set; unset "
            f"it, or download the model on a machine with a network (hf download {name}) and give its folder."
            + near_path(given)
        )
    if not hub_answers():
        raise DataError(
            f"'{name}' is no folder here, is not in the local hub cache, and the hub doesn't answer within "
            f"{NETWORK_SECONDS:.0f} s; give a model folder, or download it on a machine with a network "
            f"(hf download {name}).{near_path(given)}"
        )
    try:
        folder = Path(snapshot_download(name, **PATTERNS))
        if not any(folder.rglob("*.safetensors")):
            pickles = [*PATTERNS["allow_patterns"], "*pytorch_model*.bin"]
            folder = Path(snapshot_download(name, **{**PATTERNS, "allow_patterns": pickles}))
        return folder
    except RepositoryNotFoundError:
        raise DataError(f"the hub has no model '{name}' (or it is private: hf auth login)") from None
    except HfHubHTTPError as error:
        raise DataError(f"the hub did not give '{name}': {error}") from None


_NATIVE = "ForSequenceClassification"


def is_native(config: dict[str, Any], where: str | Path = "config.json") -> bool:
    """Return whether a config is of a transformers model with a classification head."""
    return any(name.endswith(_NATIVE) for name in architectures(config, where))


def architectures(config: dict[str, Any], where: str | Path) -> list[str]:
    """Return the classes that a config names.

    Args:
        config: What it says.
        where: It lies, for the message.

    Raises:
        DataError: They are no list of names.
    """
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: 'architectures' must be a list of names, got {names!r:.60}")
    return names


def is_classifier(folder: Path) -> bool:
    """Return whether a folder is of a classifier, ours or transformers'."""
    return (folder / CLASSIFIER_FILE).is_file() or is_native(_config(folder), folder / "config.json")


def config_labels(config: dict[str, Any]) -> list[str]:
    """Return the labels that a config of transformers names, in the order of the logits; often none.

    Raises:
        DataError: Their keys are no numbers.
    """
    names = config.get("id2label")
    if not isinstance(names, dict):
        return []
    if wrong := [key for key in names if not str(key).isdecimal()]:
        raise DataError(f"config.json: the keys of id2label are numbers, got '{wrong[0]}'")
    return [str(names[key]) for key in sorted(names, key=int)]


def declared_labels(folder: Path) -> list[str]:
    """Return the labels of a classifier, in the order of its logits; none where nothing says them."""
    path = folder / CLASSIFIER_FILE
    names = read_object(path).get("labels") if path.is_file() else config_labels(_config(folder))
    return [str(name) for name in names or ()]


def is_multi_label(folder: Path) -> bool:
    """Return whether a classifier gives a text any number of labels."""
    path = folder / CLASSIFIER_FILE
    if path.is_file():
        return bool(read_object(path).get("multi_label"))
    return _config(folder).get("problem_type") == "multi_label_classification"


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_object(path) if path.is_file() else {}
