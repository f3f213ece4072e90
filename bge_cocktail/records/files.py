"""Reading and writing files of records."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from bge_cocktail.errors import DataError
from bge_cocktail.provenance import new_file
from bge_cocktail.records.beir import Judged, is_beir, read_beir
from bge_cocktail.records.lines import read_lines
from bge_cocktail.records.record import Record, normalise, parse_record

RECORDS_FILE = "records.jsonl"


def read_records(path: str | Path, *, split: str = "train") -> list[Record]:
    """Read training records.

    Args:
        path: A JSON Lines file, a folder that `mine` wrote, or a BEIR folder.
        split: Which judgements of a BEIR folder become records.

    Raises:
        DataError: With file and line of the first thing that is wrong.
    """
    path = Path(path)
    if path.is_dir():
        if is_beir(path):
            records = records_from_beir(read_beir(path, split))
            if not records:
                raise DataError(f"{path / 'qrels' / split}.tsv: no query has a relevant document (a score above 0)")
            return records
        if not (path / RECORDS_FILE).is_file():
            raise DataError(
                f"{path} holds no records: expected {RECORDS_FILE}, or a BEIR folder "
                "(corpus.jsonl, queries.jsonl, qrels/)"
            )
        path = path / RECORDS_FILE
    records = [parse_record(value, where) for where, value in read_lines(path)]
    if not records:
        raise DataError(f"{path} holds no records")
    return records


def write_records(records: Iterable[Record], path: str | Path) -> None:
    """Write records as JSON Lines, whole or not at all."""
    with new_file(Path(path)) as working, working.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")


def records_from_beir(judged: Judged) -> list[Record]:
    """One record for each query that has a relevant document.

    Documents judged as not relevant (grade 0 or less) become negatives, unless their text equals a positive's.
    """
    records = []
    for query, grades in judged.qrels.items():
        pos = [judged.corpus[document] for document, grade in grades.items() if grade > 0]
        neg = [judged.corpus[document] for document, grade in grades.items() if grade <= 0]
        if pos:
            positives = {normalise(text) for text in pos}
            neg = [text for text in neg if normalise(text) not in positives]
            records.append(Record(judged.queries[query], tuple(pos), tuple(neg), id=query))
    return records
