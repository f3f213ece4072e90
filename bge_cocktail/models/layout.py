"""The portable layout of a sentence-transformers folder: JSON files that readers old and new understand.

sentence-transformers 5.4 and later write module types, pooling keys and lengths in a form that its own older
versions, text-embeddings-inference and infinity can't read. The older form is read by all of them, so that is
what every folder of ours has. Only JSON is touched, and torch isn't imported.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.core.outputs import read_json, read_object

CLASSIFIER_FILE = "classifier.json"
POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_OLD_KEYS = ("max_seq_length", "do_lower_case", "model_args", "tokenizer_args", "config_args")
# what newer versions write for every text encoder
_WITHOUT_EFFECT = ("modality_config", "unpad_inputs")  # on the embeddings of texts


_TEXT_ENCODER = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
_NEW_PACKAGES = ("sentence_transformers.base.modules.", "sentence_transformers.sentence_transformer.modules.")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)


def modules_of(folder: Path) -> list[tuple[str, Path]]:
    """Return the modules of a sentence-transformers folder in order, as (class name, folder).

    Raises:
        DataError: modules.json is missing, broken, or names a folder outside.
    """
    path = folder / "modules.json"
    try:
        modules = [(module["type"].rsplit(".", 1)[-1], module["path"]) for module in read_json(path)]
    except (TypeError, KeyError, AttributeError):
        raise DataError(f"{path}: expected a list of modules, each with 'type' and 'path'") from None
    for _, place in modules:
        if not isinstance(place, str) or Path(place).is_absolute() or ".." in Path(place).parts:
            raise DataError(f"{path}: the module path {place!r} leads out of the folder")
    return [(kind, folder / place) for kind, place in modules]


def transformer_folder(folder: Path) -> Path:
    """Where a model keeps configuration and tokenizer of its text encoder: in a module's folder, or at its root."""
    modules = modules_of(folder) if (folder / "modules.json").is_file() else []
    named = [path for kind, path in modules if kind == "Transformer"]
    # static embeddings have a tokenizer too
    return next(iter(named + [path for _, path in modules if (path / "tokenizer.json").is_file()]), folder)


def make_portable(folder: Path, *, max_length: int | None = None, tokenizer_from: Path | None = None) -> None:
    """Rewrite the JSON files of a sentence-transformers folder to the portable layout, in place.

    Args:
        folder: A folder with modules.json, in any layout.
        max_length: The longest text in tokens, which newer layouts leave out; without it, what the folder
            says (its sentence_bert_config.json, else its tokenizer).
        tokenizer_from: A folder whose tokenizer files replace those of `folder`: tuning doesn't change a
            tokenizer, and files that a newer transformers has written again may not load in an older one.

    Raises:
        DataError: A file is missing or a pooling mode is unknown.
    """
    refuse_unportable(folder)
    modules = read_json(folder / "modules.json")
    for module in modules:
        module["type"] = _portable_type(module["type"])
    _write(folder / "modules.json", modules)
    if tokenizer_from is not None and (tokenizer_from / "tokenizer_config.json").is_file():
        for name in TOKENIZER_FILES:
            (folder / name).unlink(missing_ok=True)
            if (tokenizer_from / name).is_file():
                shutil.copyfile(tokenizer_from / name, folder / name)
    for kind, path in modules_of(folder):
        if kind == "Transformer":
            _portable_transformer(path, max_length, tokenizer_from)
        elif kind == "Pooling":
            config = read_object(path / "config.json")
            _write(path / "config.json", portable_pooling(config, str(path / "config.json")))
        elif (path / "config.json").is_file() and path != folder:
            # newer versions name the inputs and outputs of a module, which older ones don't know
            config = read_object(path / "config.json")
            new = ("module_input_name", "module_output_name")
            kept = {key: on for key, on in config.items() if key not in new or on != "sentence_embedding"}
            _write(path / "config.json", kept)


def refuse_unportable(folder: Path) -> None:
    """Look for settings of the text encoder that the portable layout can't say.

    Raises:
        DataError: There are some; dropping them would change what the model does.
    """
    for module in read_json(folder / "modules.json"):
        if not str(module["type"]).startswith("sentence_transformers."):
            raise DataError(
                f"{folder / 'modules.json'}: {module['type']} is code of the model's own, which is never run"
            )
    for kind, path in modules_of(folder):
        config_path = path / "sentence_bert_config.json"
        config = read_object(config_path) if kind == "Transformer" and config_path.is_file() else {}
        special = [
            key
            for key, value in config.items()
            if value and key not in (*_OLD_KEYS, *_WITHOUT_EFFECT) and value != _TEXT_ENCODER.get(key)
        ]
        if special:
            raise DataError(f"{config_path}: {', '.join(special)} can't be said in the layout that all readers know")


def declared_length(folder: Path) -> int | None:
    """Return the longest text in tokens that a model takes: what it declares, where it has positions for so many.

    None where nothing says it.
    """
    if not (folder / "modules.json").is_file():
        return None
    path = transformer_folder(folder)
    config = path / "sentence_bert_config.json"
    length = read_object(config).get("max_seq_length") if config.is_file() else None
    if length is not None and (not isinstance(length, int) or length < 1):
        raise DataError(f"{config}: 'max_seq_length' must be a whole number, found {length!r}")
    room = positions_of(read_object(path / "config.json")) if (path / "config.json").is_file() else None
    return min(length, room) if length and room else length or tokenizer_length(path)


def declare_pooling(folder: Path, pooling: str) -> None:
    """Make a plain transformers folder a sentence-transformers folder: pooling as said, then unit norm.

    Args:
        folder: Holds config.json; the files of the modules are added.
        pooling: cls, mean or lasttoken.
    """
    size = read_object(folder / "config.json").get("hidden_size")
    if not isinstance(size, int):
        raise DataError(f"{folder / 'config.json'}: no 'hidden_size', so the pooling can't be written")
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": row, "name": str(row), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for row, (path, kind) in enumerate(kinds.items())
    ]
    _write(folder / "modules.json", modules)
    for path in list(kinds)[1:]:
        (folder / path).mkdir(exist_ok=True)
    described = {"pooling_mode": pooling, "embedding_dimension": size}
    _write(folder / "1_Pooling/config.json", portable_pooling(described, str(folder)))
    settings = folder / "config_sentence_transformers.json"
    if not settings.is_file():
        _write(settings, {"prompts": {}, "similarity_fn_name": "cosine"})


# they number positions from behind that of padding on
_POSITIONS_BEHIND_PADDING = frozenset(
    (
        *("camembert", "data2vec-text", "flaubert", "ibert", "longformer", "luke", "mluke", "mpnet", "roberta"),
        *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    )
)


def positions_of(config: dict[str, Any]) -> int | None:
    """Return how many tokens a transformer has positions for; None where its configuration doesn't say.

    RoBERTa and its kin keep the positions up to that of padding for no token: 514 of them are room for 512 tokens.

    Args:
        config: Its config.json.
    """
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or isinstance(positions, bool) or positions < 1:
        return None
    if str(config.get("model_type")) not in _POSITIONS_BEHIND_PADDING:
        return positions
    padding = config.get("pad_token_id", 1)
    return positions - (padding if isinstance(padding, int) else 1) - 1


def check_length(folder: Path, length: int | None) -> None:
    """Raise if a model has no positions for texts of so many tokens.

    Raises:
        UsageError: It hasn't.
    """
    plain = not (folder / "modules.json").is_file()
    for kind, path in [("Transformer", folder)] if plain else modules_of(folder):
        if length is not None and kind == "Transformer" and (path / "config.json").is_file():
            positions = positions_of(read_object(path / "config.json"))
            if positions is not None and length > positions:
                raise UsageError(f"max_length={length} is more than the model's {positions} positions")


def portable_pooling(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a Pooling configuration in the older keys (mixing both sets of keys fails in sentence-transformers 5.3).

    Args:
        config: The configuration in either form.
        where: Its place, for the error message.
    """
    if "pooling_mode" not in config:
        return config
    modes = config["pooling_mode"]
    modes = [modes] if isinstance(modes, str) else modes
    size = config.get("word_embedding_dimension") or config.get("embedding_dimension")
    if not isinstance(modes, list) or not isinstance(size, int):
        raise DataError(f"{where}: expected 'pooling_mode' and 'embedding_dimension', found {config}")
    unknown = [mode for mode in modes if mode not in POOLING_KEYS]
    if unknown:
        raise DataError(f"{where}: unknown pooling {unknown}; known: {', '.join(POOLING_KEYS)}")
    return {
        "word_embedding_dimension": size,
        **{key: mode in modes for mode, key in POOLING_KEYS.items()},
        "include_prompt": config.get("include_prompt", True),
    }


def _portable_type(name: str) -> str:
    for package in _NEW_PACKAGES:
        if name.startswith(package):
            return f"sentence_transformers.models.{name.rsplit('.', 1)[-1]}"
    return name


def _portable_transformer(path: Path, max_length: int | None, like: Path | None) -> None:
    config_path = path / "sentence_bert_config.json"
    config = read_object(config_path) if config_path.is_file() else {}
    before = like / "sentence_bert_config.json" if like else config_path
    lower = read_object(before).get("do_lower_case", False) if before.is_file() else False
    length = max_length or config.get("max_seq_length") or tokenizer_length(path)
    room = positions_of(read_object(path / "config.json")) if (path / "config.json").is_file() else None
    if room is not None and isinstance(length, int):
        length = min(length, room)
    kept = {key: value for key, value in config.items() if key in _OLD_KEYS}
    _write(config_path, {**kept, "max_seq_length": length, "do_lower_case": lower})


def tokenizer_length(path: Path) -> int | None:
    """Return the model's own limit: the tokenizer's, but never more than the position embeddings."""
    limits = []
    if (path / "tokenizer_config.json").is_file():
        value = read_object(path / "tokenizer_config.json").get("model_max_length")
        # tokenizers write 1e30 for "no limit"
        if isinstance(value, int | float) and 0 < value < 1e9:
            limits.append(int(value))
    if (path / "config.json").is_file():
        positions = positions_of(read_object(path / "config.json"))
        limits += [positions] if positions is not None else []
    return min(limits, default=None)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
