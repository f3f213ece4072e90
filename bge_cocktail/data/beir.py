"""BEIR folders: a corpus, queries, and which documents are relevant to which query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import DataError, nearest
from bge_cocktail.data.readers import BadRows, read_lines, required_text, text_lines

CORPUS_FILE = "corpus.jsonl"


@dataclass(frozen=True, slots=True)
class RetrievalData:
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
    """Return whether a folder has the form of a BEIR data set."""
    return (path / CORPUS_FILE).is_file() and (path / "qrels").is_dir()


def read_beir(path: Path, split: str = "test", rejects: BadRows | None = None) -> RetrievalData:
    """Read one split of a BEIR folder.

    Args:
        path: Folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv.
        split: Which judgements to read.
        rejects: Takes bad lines; without it, the first ends the reading.

    Raises:
        DataError: A file is missing or broken, an id is repeated, or the judgements name an unknown id.
    """
    rejects = rejects or BadRows()
    corpus = _read_texts(path / CORPUS_FILE, rejects, with_title=True)
    queries = _read_texts(path / "queries.jsonl", rejects, with_title=False)
    qrels = _read_qrels(path / "qrels" / f"{split}.tsv", corpus, queries, rejects)
    return RetrievalData(corpus, {query: queries[query] for query in qrels}, qrels)


def read_corpus(path: Path) -> list[str]:
    """Return the texts of a corpus: a BEIR folder, or JSON Lines with ``text`` and perhaps ``title``.

    Raises:
        DataError: With file and line of what is wrong.
    """
    if path.is_dir():
        return list(_read_texts(path / CORPUS_FILE, BadRows(), with_title=True).values())
    return [_document(value, where) for where, value in read_lines(path)]


def corpus_of(path: Path) -> Path | None:
    """Return the folder itself if it holds a corpus (a BEIR folder, or one that `prepare` wrote), else None."""
    return path if (path / CORPUS_FILE).is_file() else None


def read_judgements(path: Path) -> list[RetrievalData]:
    """Return all splits of a BEIR folder.

    Raises:
        DataError: It is none, or something in it is wrong.
    """
    if not is_beir(path):
        raise DataError(f"{path} holds no judgements: expected a BEIR folder ({CORPUS_FILE}, queries.jsonl, qrels/)")
    return [read_beir(path, file.stem) for file in sorted((path / "qrels").glob("*.tsv"))]


def _read_texts(path: Path, rejects: BadRows, *, with_title: bool) -> dict[str, str]:
    texts: dict[str, str] = {}
    for where, name, value in _with_ids(path, rejects, texts):
        try:
            texts[name] = _document(value, where) if with_title else required_text(value, "text", where)
        except DataError as error:
            rejects.add(error, where, value)
    if not texts:
        raise DataError(f"{path} is empty")
    return texts


def read_documents(path: Path, rejects: BadRows) -> Iterator[tuple[str, str]]:
    """Id and text of each document of a corpus file, one at a time; ids are not compared with each other."""
    for where, name, value in _with_ids(path, rejects, {}):
        try:
            yield name, _document(value, where)
        except DataError as error:
            rejects.add(error, where, value)


def _with_ids(path: Path, rejects: BadRows, known: Mapping[str, str]) -> Iterator[tuple[str, str, Any]]:
    for where, value in read_lines(path, rejects):
        try:
            name = required_text(value, "_id", where)
            if name in known:
                raise DataError(f"{where}: the id '{name}' stands here a second time")
        except DataError as error:
            rejects.add(error, where, value)
            continue
        yield where, name, value


def _document(value: Any, where: str) -> str:
    """Title and text of a document, with a space between, as BEIR joins them."""
    title = ""
    if isinstance(value, dict) and "title" in value:
        title = required_text(value, "title", where, may_be_empty=True)
    return f"{title} {required_text(value, 'text', where, may_be_empty=bool(title.strip()))}".strip()


def _read_qrels(
    path: Path, corpus: Mapping[str, str], queries: Mapping[str, str], rejects: BadRows
) -> dict[str, dict[str, int]]:
    if not path.is_file():
        splits = sorted(file.stem for file in path.parent.glob("*.tsv"))
        raise DataError(f"{path}: no such split.{nearest(path.stem, splits)}")
    qrels: dict[str, dict[str, int]] = {}
    for number, line in text_lines(path, rejects):
        cells = line.rstrip("\r\n").split("\t")
        if not line.strip() or (number == 1 and cells[0] in ("query-id", "query_id", "qid")):
            continue
        where = f"{path}:{number}"
        try:
            query, document, grade = _judgement(cells, where, corpus, queries)
        except DataError as error:
            rejects.add(error, where, line)
            continue
        known = qrels.setdefault(query, {}).setdefault(document, grade)
        if known != grade:
            twice = DataError(f"{where}: '{document}' is judged {grade} for '{query}', and {known} further up")
            rejects.add(twice, where, line)
    if not qrels:
        raise DataError(f"{path} holds no judgements")
    return qrels


def _judgement(
    cells: list[str], where: str, corpus: Mapping[str, str], queries: Mapping[str, str]
) -> tuple[str, str, int]:
    if len(cells) != 3:
        shown = "\t".join(cells)[:60]
        raise DataError(f"{where}: expected query-id, corpus-id and score between tabs, got {shown!r}")
    query, document, grade = cells
    for name, kind, known in ((query, "query", queries), (document, "document", corpus)):
        if name not in known:
            raise DataError(f"{where}: unknown {kind} id '{name}'")
    try:
        return query, document, int(grade)
    except ValueError:
        raise DataError(f"{where}: the score must be a whole number, got {grade!r}") from None
