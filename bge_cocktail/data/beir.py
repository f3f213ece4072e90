"""BEIR folders: a corpus, queries, and which documents are relevant to which query."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import DataError, nearest
from bge_cocktail.data.readers import BadRows, kind_of, read_lines, required_text, rows_of_file, text_lines

log = logging.getLogger(__name__)
CORPUS_FILE = "corpus.jsonl"
QRELS_KINDS = (".tsv", ".csv", ".txt")
_NUMBER = re.compile(r"-?\d+(\.0*)?")
_HEADER = re.compile(r"(query|q|topic)?[-_ ]?id|query|topic", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RetrievalData:
    """Queries, documents and relevance judgements.

    Attributes:
        corpus: Text of each document by id; a title comes first, with a space between.
        queries: Text of each judged query by id.
        qrels: For each query id, the grade of each judged document; above 0 is relevant. A judged document that is
            not in the corpus counts as not found, as trec_eval has it.
    """

    corpus: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]


# other names of dev
DEV_NAMES = ("validation", "valid", "val")


def is_beir(path: Path) -> bool:
    """Return whether a folder has the form of a BEIR data set."""
    return (path / CORPUS_FILE).is_file() and (path / "qrels").is_dir()


def read_beir(path: Path, split: str = "test", rejects: BadRows | None = None) -> RetrievalData:
    """Read one split of a BEIR folder.

    Args:
        path: Folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv (or .csv, .txt).
        split: Which judgements to read.
        rejects: Takes bad lines; without it, the first ends the reading.

    Raises:
        DataError: A file is missing or broken, an id is repeated, or the judgements name an unknown query.
    """
    rejects = rejects or BadRows()
    corpus = _read_texts(path / CORPUS_FILE, rejects, with_title=True)
    queries = _read_texts(path / "queries.jsonl", rejects, with_title=False)
    qrels = _read_qrels(path / "qrels", split, queries, corpus, rejects)
    strangers = sum(document not in corpus for grades in qrels.values() for document in grades)
    if strangers == sum(map(len, qrels.values())):
        raise DataError(f"{path}: none of the {strangers} judged documents is in {CORPUS_FILE}; are the ids others?")
    if strangers:
        log.warning("%s: %d judged documents are not in the corpus; they count as not found", path, strangers)
    if empty := sum(not text for text in corpus.values()):
        log.warning("%s: %d documents are empty", path, empty)
    return RetrievalData(corpus, {query: queries[query] for query in qrels}, qrels)


def read_corpus(path: Path) -> list[str]:
    """Return the texts of a corpus: a BEIR folder, or a file as `documents_in` reads it.

    Raises:
        DataError: With file and line of what is wrong.
    """
    if path.is_dir():
        return list(_read_texts(path / CORPUS_FILE, BadRows(), with_title=True).values())
    return [text for _, text in documents_in(path)]


def documents_in(path: Path) -> Iterator[tuple[str, str]]:
    """Id and text of each document of a BEIR folder, or of a file with ``text`` and perhaps ``_id`` (or ``id``) and
    ``title``.

    Args:
        path: The folder, or a file of JSON Lines, CSV, TSV or Parquet; another name is read as JSON Lines.

    Raises:
        DataError: With file and line of what is wrong.
    """
    if path.is_dir():
        yield from read_documents(path / CORPUS_FILE, BadRows())
        return
    rows = rows_of_file(path, BadRows()) if kind_of(path) else read_lines(path)
    for number, (where, value) in enumerate(rows, start=1):
        text = _document(value, where)
        yield str(value.get("_id") or value.get("id") or f"d{number}"), text


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
    return [read_beir(path, split) for split in qrels_splits(path)]


def qrels_splits(path: Path) -> list[str]:
    """Return the splits of which a BEIR folder has judgements."""
    files = (path / "qrels").iterdir()
    return sorted({file.stem for file in files if file.suffix in QRELS_KINDS and file.is_file()})


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
            if isinstance(value, dict) and type(value.get("_id")) is int:
                value["_id"] = str(value["_id"])
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
    if isinstance(value, dict) and value.get("title") is not None:
        title = required_text(value, "title", where, may_be_empty=True)
    return f"{title} {required_text(value, 'text', where, may_be_empty=True)}".strip()


def _read_qrels(
    folder: Path, split: str, queries: Mapping[str, str], corpus: Mapping[str, str], rejects: BadRows
) -> dict[str, dict[str, int]]:
    names = [split, *(DEV_NAMES if split == "dev" else ())]
    files = [file for name in names for kind in QRELS_KINDS if (file := folder / f"{name}{kind}").is_file()]
    if len(files) > 1:
        raise DataError(f"{files[0]} and {files[1].name} both judge the split '{split}'; keep one of them")
    path = files[0] if files else None
    if path is None:
        raise DataError(f"{folder / split}.tsv: no such split.{nearest(split, qrels_splits(folder.parent))}")
    qrels: dict[str, dict[str, int]] = {}
    lines = ((number, line) for number, line in text_lines(path, rejects) if line.strip())
    split_line: Callable[[str], list[str]] | None = None
    for number, line in lines:
        if split_line is None:
            split_line = _splitter(line)
            if _HEADER.fullmatch(_bare(split_line(line)[0])):
                continue
        where = f"{path}:{number}"
        try:
            query, document, grade = _judgement(split_line(line), where, queries, corpus)
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


def _splitter(first: str) -> Callable[[str], list[str]]:
    """Return what splits lines into cells, told from the first: at tabs, else commas or semicolons, else blanks."""
    if "\t" not in first:
        for sign in (",", ";"):
            cells = next(csv.reader([first], delimiter=sign))
            if len(cells) in (3, 4) and (_HEADER.fullmatch(_bare(cells[0])) or _NUMBER.fullmatch(_bare(cells[-1]))):
                return lambda line: next(csv.reader([line.rstrip("\r\n")], delimiter=sign), [""])

    def at_tabs_or_blanks(line: str) -> list[str]:
        cells = line.rstrip("\r\n").split("\t")
        return cells if len(cells) > 1 else line.split()

    return at_tabs_or_blanks


def _bare(cell: str) -> str:
    """Return a cell without the blanks and quotes around it."""
    cell = cell.strip()
    return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _judgement(
    cells: list[str], where: str, queries: Mapping[str, str], corpus: Mapping[str, str]
) -> tuple[str, str, int]:
    # a tab at the end is no cell; TREC's lines have a number between query and document that nobody uses
    while len(cells) > 3 and not cells[-1].strip():
        cells = cells[:-1]
    if len(cells) == 4:
        cells = [cells[0], *cells[2:]]
    if len(cells) != 3:
        shown = "\t".join(cells)[:60]
        raise DataError(f"{where}: expected query-id, corpus-id and score between tabs, got {shown!r}")
    # blanks and quotes belong to an id where there is one that has them
    query, document = (
        cell if cell in ids else _bare(cell) for cell, ids in zip(cells[:2], (queries, corpus), strict=True)
    )
    grade = _bare(cells[2])
    if query not in queries:
        raise DataError(f"{where}: unknown query id '{query}'")
    try:
        number = float(grade)
        if number != int(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise DataError(f"{where}: the score must be a whole number, got {grade!r}") from None
    return query, document, int(number)
