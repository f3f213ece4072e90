"""The corpus of a BEIR folder, cleaned as its records are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bge_cocktail.preparing.cleaning import Cleaner
from bge_cocktail.preparing.duplicates import text_key
from bge_cocktail.records.beir import CORPUS_FILE, read_documents
from bge_cocktail.records.files import json_line
from bge_cocktail.records.opening import Rejects


def write_corpus(folders: Sequence[Path], output: Path, cleaner: Cleaner) -> dict[str, Any]:
    """Write the cleaned documents of BEIR folders, each text and each id once, to mine from.

    Bad lines are passed over: they were met, and refused or counted, when the records were read.

    Returns:
        How many were read, kept and left out, by reason.
    """
    seen: set[bytes] = set()
    names: set[str] = set()
    counts = {"read": 0, "kept": 0, "exact duplicate": 0, "left out by cleaning": 0}
    with (output / CORPUS_FILE).open("wb") as file:
        for number, folder in enumerate(folders):
            for name, text in read_documents(folder / CORPUS_FILE, Rejects(skip=True)):
                # ids of several corpora may be the same, of one they are no two documents'
                name = f"{number}-{name}" if len(folders) > 1 else name
                if name in names:
                    continue
                names.add(name)
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
