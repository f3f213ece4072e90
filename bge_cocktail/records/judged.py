"""A retrieval task from whatever holds one: a BEIR folder, a prepared folder, a file of records."""

from __future__ import annotations

from pathlib import Path

from bge_cocktail.records.beir import CORPUS_FILE, Judged, corpus_of, is_beir, judge_records, read_beir, read_documents
from bge_cocktail.records.files import read_records
from bge_cocktail.records.lines import read_lines
from bge_cocktail.records.opening import Rejects


def holds_records(path: Path) -> bool:
    """Whether a folder holds records by split (train.jsonl, dev.jsonl, test.jsonl), as `prepare` writes them."""
    for split in ("test", "dev", "train"):
        file = path / f"{split}.jsonl"
        if file.is_file():
            _, row = next(read_lines(file), ("", None))
            return isinstance(row, dict) and "query" in row
    return False


def read_judged(path: Path, split: str) -> Judged:
    """Queries, documents and judgements.

    Args:
        path: A BEIR folder, a folder that `prepare` wrote (with its corpus, if it has one), or a file of records,
            whose texts are the documents.
        split: Which split of a folder.

    Raises:
        DataError: With file and line of what is wrong.
    """
    if is_beir(path):
        return read_beir(path, split)
    corpus = corpus_of(path) if path.is_dir() else None
    documents = dict(read_documents(corpus / CORPUS_FILE, Rejects())) if corpus else {}
    return judge_records(read_records(path, split=split), documents)
