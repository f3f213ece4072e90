"""The corpus of a BEIR folder, cleaned as its records are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bge_cocktail.preparing.cleaning import Cleaner
from bge_cocktail.preparing.duplicates import text_key
from bge_cocktail.records.beir import CORPUS_FILE, read_documents
from bge_cocktail.records.files import json_line
from bge_cocktail.records.opening import Rejects


def write_corpus(folder: Path, output: Path, cleaner: Cleaner, rejects: Rejects) -> dict[str, Any]:
    """Write the cleaned documents, each text once, to mine from.

    Returns:
        How many were read, kept and left out, by reason.
    """
    seen: set[bytes] = set()
    counts = {"read": 0, "kept": 0, "exact duplicate": 0, "left out by cleaning": 0}
    with (output / CORPUS_FILE).open("wb") as file:
        for name, text in read_documents(folder / CORPUS_FILE, rejects):
            counts["read"] += 1
            cleaned = cleaner(text, "document")
            if cleaned is None:
                counts["left out by cleaning"] += 1
                continue
            key = text_key(cleaned)
            if key in seen:
                counts["exact duplicate"] += 1
                continue
            seen.add(key)
            counts["kept"] += 1
            file.write(json_line({"_id": name, "text": cleaned}))
    return counts
