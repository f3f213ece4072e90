"""The prompts of a model: what is put before queries, documents and other texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bge_cocktail.core.errors import DataError
from bge_cocktail.core.outputs import read_object, write_json

SETTINGS_FILE = "config_sentence_transformers.json"
Role = Literal["query", "document", "text"]


def declared_prompts(folder: Path) -> dict[str, str]:
    """Return the prompts that a model declares by name (``query``, ``document``, ...); often none."""
    path = folder / SETTINGS_FILE
    prompts = (read_object(path).get("prompts") if path.is_file() else None) or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise DataError(f"{path}: 'prompts' must be texts by name, found {prompts!r}")
    return {name: text or "" for name, text in prompts.items()}


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is put before every text of a role.

    Attributes:
        query: Before queries.
        document: Before documents.
        text: Before texts that are neither (classification, similarity).
    """

    query: str = ""
    document: str = ""
    text: str = ""

    def of(self, role: Role) -> str:
        """Return the prompt of a role."""
        return {"query": self.query, "document": self.document, "text": self.text}[role]


def model_prompts(folder: Path, *, query: str | None = None, document: str | None = None) -> Prompts:
    """Return the prompts that a model is used with: those chosen, else those that it declares.

    As in sentence-transformers, except that a prompt declared under ``passage`` or ``corpus`` is used for documents
    (version 6.2 looks for it, but its own empty ``document`` prompt comes first).

    Args:
        folder: The model.
        query: Chosen for queries; an empty one is a choice, too.
        document: Chosen for documents.
    """
    declared = declared_prompts(folder)
    path = folder / SETTINGS_FILE
    default = read_object(path).get("default_prompt_name") if path.is_file() else None
    if not isinstance(default, str | None):
        raise DataError(f"{path}: 'default_prompt_name' must be a text, found {default!r:.60}")
    names = ("document", "passage", "corpus")
    return Prompts(
        query=declared.get("query", "") if query is None else query,
        document=next((declared[name] for name in names if declared.get(name)), "") if document is None else document,
        text=declared.get(default or "", ""),
    )


def set_prompts(folder: Path, prompts: dict[str, str]) -> None:
    """Store prompts in a model folder, beside those that it declares already."""
    path = folder / SETTINGS_FILE
    config: dict[str, Any] = read_object(path) if path.is_file() else {"similarity_fn_name": "cosine"}
    declared = declared_prompts(folder)
    if prompts.get("document") == "":  # the prompt's other names would come back
        declared = {name: text for name, text in declared.items() if name not in ("passage", "corpus")}
    config["prompts"] = {**declared, **prompts}
    config.setdefault("default_prompt_name", None)
    write_json(path, config)
