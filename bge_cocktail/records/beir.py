"""BEIR folders: a corpus, queries, and which documents are relevant to which query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bge_cocktail.errors import DataError, nearest
from bge_cocktail.records.lines import read_lines, required_text
from bge_cocktail.records.record import Record, normalise


@dataclass(frozen=True, slots=True)
class Judged:
    """Queries, documents and relevance judgements.

    Attributes:
        corpus: Text of each document by id; a title comes first, with a space between.
        queries: Text of each judged query by id.
        qrels: For each query id, the grade of each judged document; above 0 is relevant.
    """

    corpus: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]


def is_beir(path: Path) -> bool:
    """Whether a folder has the form of a BEIR data set."""
    return (path / "corpus.jsonl").is_file() and (path / "qrels").is_dir()


def read_beir(path: Path, split: str = "test") -> Judged:
    """Read one split of a BEIR folder.

    Args:
        path: Folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv.
        split: Which judgements to read.

    Raises:
        DataError: A file is missing or broken, an id is repeated, or the judgements name an unknown id.
    """
    corpus = _read_texts(path / "corpus.jsonl", with_title=True)
    queries = _read_texts(path / "queries.jsonl", with_title=False)
    qrels = _read_qrels(path / "qrels" / f"{split}.tsv", corpus, queries)
    return Judged(corpus, {query: queries[query] for query in qrels}, qrels)


def read_corpus(path: Path) -> list[str]:
    """The texts of a corpus: a BEIR folder, or JSON Lines with ``text`` and perhaps ``title``.

    Raises:
        DataError: With file and line of what is wrong.
    """
    if path.is_dir():
        return list(_read_texts(path / "corpus.jsonl", with_title=True).values())
    return [_document(value, where) for where, value in read_lines(path)]


def judge_records(records: Iterable[Record]) -> Judged:
    """Records as a retrieval task: every text of theirs is a document, the positives are relevant."""
    documents: dict[str, str] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for record in records:
        query = queries.setdefault(normalise(record.query), record.query)
        for text in (*record.pos, *record.neg):
            documents.setdefault(text, f"d{len(documents)}")
        grades = qrels.setdefault(normalise(query), {})
        grades.update({documents[text]: 1 for text in record.pos})
    return Judged({name: text for text, name in documents.items()}, queries, qrels)


def sample_judged(judged: Judged, *, queries: int, documents: int, seed: int) -> Judged:
    """A smaller retrieval task: a draw of the queries, their relevant documents, and a draw of the others.

    Args:
        judged: The whole task.
        queries: How many queries at most.
        documents: How many documents at most, unless more are relevant.
        seed: Seeds the draw.
    """
    generator = np.random.default_rng(seed)

    def draw(names: list[str], count: int) -> list[str]:
        if len(names) <= count:
            return names
        return [names[row] for row in sorted(generator.choice(len(names), count, replace=False).tolist())]

    kept = draw(list(judged.queries), queries)
    judged_ids = {document for query in kept for document in judged.qrels[query]}
    others = draw([name for name in judged.corpus if name not in judged_ids], max(0, documents - len(judged_ids)))
    chosen = judged_ids.union(others)
    return Judged(
        {name: text for name, text in judged.corpus.items() if name in chosen},
        {query: judged.queries[query] for query in kept},
        {query: judged.qrels[query] for query in kept},
    )


def _read_texts(path: Path, *, with_title: bool) -> dict[str, str]:
    texts: dict[str, str] = {}
    for where, value in read_lines(path):
        name = required_text(value, "_id", where)
        if name in texts:
            raise DataError(f"{where}: the id '{name}' stands here a second time")
        texts[name] = _document(value, where) if with_title else required_text(value, "text", where)
    if not texts:
        raise DataError(f"{path} is empty")
    return texts


def _document(value: Any, where: str) -> str:
    """Title and text of a document, with a space between, as BEIR joins them."""
    title = ""
    if isinstance(value, dict) and "title" in value:
        title = required_text(value, "title", where, may_be_empty=True)
    return f"{title} {required_text(value, 'text', where, may_be_empty=bool(title.strip()))}".strip()


def _read_qrels(path: Path, corpus: Mapping[str, str], queries: Mapping[str, str]) -> dict[str, dict[str, int]]:
    if not path.is_file():
        splits = sorted(file.stem for file in path.parent.glob("*.tsv"))
        raise DataError(f"{path}: no such split.{nearest(path.stem, splits)}")
    qrels: dict[str, dict[str, int]] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from None
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        cells = line.rstrip("\n").split("\t")
        if number == 1 and cells[0] in ("query-id", "query_id", "qid"):
            continue
        if not line.strip():
            continue
        if len(cells) != 3:
            raise DataError(f"{where}: expected query-id, corpus-id and score between tabs, got {line[:60]!r}")
        query, document, grade = cells
        for name, kind, known in ((query, "query", queries), (document, "document", corpus)):
            if name not in known:
                raise DataError(f"{where}: unknown {kind} id '{name}'")
        try:
            qrels.setdefault(query, {})[document] = int(grade)
        except ValueError:
            raise DataError(f"{where}: the score must be a whole number, got {grade!r}") from None
    if not qrels:
        raise DataError(f"{path} holds no judgements")
    return qrels
