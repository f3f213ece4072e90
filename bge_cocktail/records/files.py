"""Reading and writing files of records."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import orjson

from bge_cocktail.errors import DataError
from bge_cocktail.outputs import new_file
from bge_cocktail.records.beir import is_beir
from bge_cocktail.records.examples import RecordExample
from bge_cocktail.records.opening import Rejects
from bge_cocktail.records.record import Record
from bge_cocktail.records.sources import read_examples

log = logging.getLogger(__name__)
RECORDS_FILE = "records.jsonl"


def read_records(path: str | Path, *, split: str = "train", columns: str = "") -> list[Record]:
    """Read training records.

    Args:
        path: A file (JSON Lines, CSV, TSV, Parquet; plain, gzip or zstd), a folder that `prepare` or `mine` wrote, a
            BEIR folder, or a data set of the hub.
        split: Which split of a folder or data set.
        columns: Which column is what (``query=question,pos=answer``); without it, told from the names.

    Raises:
        DataError: With file and line of the first thing that is wrong.
    """
    source = Path(path)
    if source.is_dir() and not is_beir(source):
        if (source / RECORDS_FILE).is_file():
            source = source / RECORDS_FILE
        elif not any(source.glob(f"{split}.*")):
            raise DataError(
                f"{path} holds no records: expected {RECORDS_FILE} or {split}.jsonl, or a BEIR folder "
                "(corpus.jsonl, queries.jsonl, qrels/)"
            )
    records = []
    left_out = Rejects()
    name = str(source if source.exists() else path)
    for example in read_examples(name, split=split, columns=columns, rejects=left_out):
        if not isinstance(example, RecordExample):
            raise DataError(
                f"{path} holds {'labelled texts' if len(example.own_texts()) == 1 else 'pairs of texts'}, no records; "
                f"make records from them: bge-cocktail prepare {path} -o FOLDER"
            )
        records.append(example.record)
    for reason, count in left_out.reasons.items():
        log.warning("%s: %d are left out: %s", path, count, reason)
    return records


def write_records(records: Iterable[Record], path: str | Path) -> None:
    """Write records as JSON Lines, whole or not at all."""
    with new_file(Path(path)) as working, working.open("wb") as file:
        for record in records:
            file.write(json_line(record.to_json()))


def json_line(value: object) -> bytes:
    """A value as one line of JSON in UTF-8, numbers of any size too."""
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        import json

        # what orjson can't: numbers beyond 64 bits, and halves of characters, which become escapes
        return (json.dumps(value, default=str) + "\n").encode()
