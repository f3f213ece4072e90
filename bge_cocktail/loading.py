"""What libraries pass over when they load a model: weights that its files lack, and a tokenizer that isn't there."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError

from bge_cocktail.errors import DataError
from bge_cocktail.layout import transformer_folder

CANT_LOAD = (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError, UnpicklingError)
"""What libraries raise for a folder that is no model, or a broken one."""
# what encoders come with or without, and embeddings don't use
_OPTIONAL = ("pooler.",)


def why_not(error: Exception) -> str:
    """What an error of `CANT_LOAD` says; of a pickle with code in it not torch's advice to run that."""
    if isinstance(error, UnpicklingError) or "weights_only" in str(error):
        return "its .bin file holds more than tensors, such as code, and none is run; take safetensors"
    return str(error)


def weight_files(folder: Path) -> dict[str, Any]:
    """How transformers shall read the weights: safetensors, or where there are none, pickles without any code.

    Args:
        folder: Of the transformer itself.
    """
    return {"use_safetensors": any(folder.glob("*.safetensors")) or not any(folder.glob("*.bin"))}


def check_loaded(name: str | Path, base: Path, model: Any, tokenizer: Any) -> None:
    """Raise where a model was loaded that isn't whole: it would embed, but nothing that it has learned.

    Args:
        name: For the message.
        base: Its folder.
        model: A loaded transformers model, all of whose weights shall be in the folder.
        tokenizer: Its tokenizer.

    Raises:
        DataError: The files lack weights, for which transformers takes random numbers, or the tokenizer knows no word.
    """
    folder = transformer_folder(base)
    if tokenizer is not None and len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise DataError(f"{name}: its tokenizer knows no word; {folder} lacks its files (tokenizer.json or vocab.txt)")
    if lacking := _lacking(folder, model):
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if lacking[3:] else "")
        raise DataError(
            f"{name}: its files lack the weights {shown}; without them it would embed at random; get its files again"
        )


def _lacking(folder: Path, model: Any) -> list[str]:
    """Names of the weights that the files don't have."""
    from safetensors import safe_open

    held: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            held |= set(opened.keys())
    prefix = f"{model.base_model_prefix}."
    bare = {name.removeprefix(prefix) for name in held}
    # a head on top may go through the pooler
    optional = _OPTIONAL if model.base_model is model else ()
    wanted = [name for name in model.state_dict() if not any(part in name for part in optional)]
    if all(name.removeprefix(prefix) in bare for name in wanted):
        return []
    # names may differ and still be known to transformers (older ones, tied ones), and pickles were not looked into
    given = {**weight_files(folder), "local_files_only": True, "output_loading_info": True}
    _, info = type(model).from_pretrained(folder, **given)
    return sorted(name for name in info["missing_keys"] if not any(part in name for part in optional))
