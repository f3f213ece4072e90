"""The prompts of a model: what is put before queries, documents and other texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import DataError
from bge_cocktail.core.outputs import read_object
from bge_cocktail.models.layout import (
    _write,
)


def declared_prompts(folder: Path) -> dict[str, str]:
    """The prompts that a model declares by name (``query``, ``document``, ...); often none."""
    path = folder / "config_sentence_transformers.json"
    prompts = (read_object(path).get("prompts") if path.is_file() else None) or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise DataError(f"{path}: 'prompts' must be texts by name, found {prompts!r}")
    return {name: text or "" for name, text in prompts.items()}


def prompt_for(folder: Path, role: str) -> str:
    """The prompt that a model declares for a role.

    As in sentence-transformers, except that a prompt declared under ``passage`` or ``corpus`` is used for documents
    (version 6.2 looks for it, but its own empty ``document`` prompt comes first).

    Args:
        folder: The model.
        role: ``query``, ``document``, or ``text`` for texts that are neither.
    """
    prompts = declared_prompts(folder)
    if role == "text":
        path = folder / "config_sentence_transformers.json"
        default = read_object(path).get("default_prompt_name") if path.is_file() else None
        return prompts.get(default or "", "")
    names = ("query",) if role == "query" else ("document", "passage", "corpus")
    return next((prompts[name] for name in names if prompts.get(name)), "")


def set_prompts(folder: Path, prompts: dict[str, str]) -> None:
    """Store prompts in a model folder, beside those that it declares already."""
    path = folder / "config_sentence_transformers.json"
    config: dict[str, Any] = read_object(path) if path.is_file() else {"similarity_fn_name": "cosine"}
    declared = declared_prompts(folder)
    if prompts.get("document") == "":  # the prompt's other names would come back
        declared = {name: text for name, text in declared.items() if name not in ("passage", "corpus")}
    config["prompts"] = {**declared, **prompts}
    config.setdefault("default_prompt_name", None)
    _write(path, config)
