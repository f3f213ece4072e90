"""Where data come from: files of any form, BEIR folders, prepared folders, data sets of the hub."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from bge_cocktail.core.devices import hub_answers
from bge_cocktail.core.errors import DataError, UsageError, near_path, nearest
from bge_cocktail.data.beir import DEV_NAMES, is_beir, qrels_splits, read_beir
from bge_cocktail.data.columns import (
    ABOUT,
    PRESETS,
    Columns,
    guess_roles,
    keep_one_form,
    parse_columns,
    refuse_unread_grades,
)
from bge_cocktail.data.examples import Example, RecordExample
from bge_cocktail.data.readers import BadRows, Rows, kind_of, rows_of_file
from bge_cocktail.data.record import FIELDS, NEGATIVES, Record, normalise, parse_record

NO_IN_BATCH = "no_in_batch_neg"
# rows whose columns are looked at before the first is read
PEEKED = 100


# the number of a part: train-00000-of-00002
_PART = re.compile(r"[-_]\d+(?:-of-\d+)?$")


log = logging.getLogger(__name__)


def read_examples(
    source: str,
    *,
    split: str = "train",
    config: str | None = None,
    columns: str = "",
    labels: dict[str, str] | None = None,
    scale: float | None = None,
    rejects: BadRows | None = None,
) -> Iterator[Example]:
    """Yield the examples of a source, one at a time.

    Args:
        source: A file (JSON Lines, CSV, TSV, Parquet; plain, gzip or zstd), a folder of such files named by split, a
            BEIR folder, a short name of a known data set (``sst2``), or a data set of the hub.
        split: Which part of a folder or data set.
        config: Which configuration of a data set of the hub.
        columns: Which column is what (``query=question,pos=answer``); without it, told from the names.
        labels: Names for labels.
        scale: What scores are divided by.
        rejects: Takes bad rows; without it, the first ends the reading.

    Raises:
        DataError: With the place of what is wrong.
        UsageError: The columns are said wrongly.
    """
    rejects = rejects or BadRows()
    path = Path(source).expanduser()
    roles = parse_columns(columns)
    if path.is_dir() and is_beir(path):
        if columns:
            raise UsageError(f"{source} is a BEIR folder, whose columns have names of their own; leave `columns` out")
        yield from map(RecordExample, records_from_beir_folder(path, split, rejects))
        return
    no_in_batch = False
    if path.exists():
        files = files_of_split(path, split)
        no_in_batch = any(NO_IN_BATCH in part for part in files[0].parts)
        rows: Rows = chain.from_iterable(rows_of_file(file, rejects) for file in files)
    else:
        preset = PRESETS.get(source.lower())
        if preset and split in preset.unlabelled:
            raise DataError(f"{source}: the labels of {split} are kept back by those who made it; take `split=dev`")
        if preset:
            config, split = config or preset.config, preset.splits.get(split, split)
            roles, labels = roles or parse_columns(preset.columns), labels or preset.labels
            scale = scale or preset.scale
        rows = rows_of_hub(preset.name if preset else source, config, split)
    for example in examples_of_rows(rows, source, roles=roles, labels=labels, scale=scale, rejects=rejects):
        if no_in_batch and isinstance(example, RecordExample):
            example = RecordExample(replace(example.record, in_batch_negatives=False))
        yield example


def examples_of_rows(
    rows: Iterable[tuple[str, Any]],
    source: str,
    *,
    roles: Mapping[str, tuple[str, ...]] | None = None,
    labels: Mapping[str, str] | None = None,
    scale: float | None = None,
    rejects: BadRows | None = None,
) -> Iterator[Example]:
    """Yield the examples that rows hold; see `read_examples`.

    Args:
        rows: Each with ``file:line``.
        source: What they were read from.
        roles: Which columns are what; without it, told from the names of the first rows.
        labels: Names for labels.
        scale: What scores are divided by.
        rejects: Takes bad rows; without it, the first ends the reading.

    Raises:
        DataError: With the place of what is wrong.
    """
    rejects = rejects or BadRows()
    rows = iter(rows)
    first = list(islice(rows, PEEKED))
    if not first:
        raise DataError(f"{source} holds no rows")
    parse = _parser(first, dict(roles or {}), dict(labels or {}), scale or 1.0)
    for where, row in chain(first, rows):
        try:
            yield parse(row, where, rejects.note_part)
        except DataError as error:
            rejects.add(error, where, row)


def _parser(
    first: list[tuple[str, Any]], roles: dict[str, tuple[str, ...]], labels: dict[str, str], scale: float
) -> Callable[[Any, str, Callable[[str], None]], Example]:
    """Return what makes an example of a row, by the roles that were said or by the columns of the first rows."""
    where, row = first[0]
    if isinstance(row, list) and row and isinstance(row[0], dict):
        raise DataError(f"{where}: a JSON array; expected JSON Lines, one object a line")
    if not roles and isinstance(row, dict) and "query" in row and isinstance(row.get("pos"), list):
        _warn_of_near_names(row)
        return lambda row, where, note: RecordExample(parse_record(row, where, note))
    names = list(dict.fromkeys(name for _, row in first if isinstance(row, dict) for name in row))
    if not roles:
        guessed = guess_roles(names, where)
        refuse_unread_grades(guessed, (row for _, row in first if isinstance(row, dict)), where)
        unread = set(names) - {name for columns in guessed.values() for name in columns}
        _warn_of_near_names(dict.fromkeys(sorted(unread)))
        return Columns(guessed, labels, scale).example
    chosen = keep_one_form(roles, names, where)
    for role, columns in roles.items():
        if role not in chosen:
            raise UsageError(f"the role '{role}' doesn't go with {', '.join(name for name in roles if name != role)}")
        missing = [column for column in columns if column not in names]
        if missing and names:
            raise DataError(f"{where}: no column '{missing[0]}' ({role}).{nearest(missing[0], names)}")
    # what is said about a row needs no saying where the column has the role's own name
    used = {column for columns in chosen.values() for column in columns}
    chosen |= {role: (role,) for role in ABOUT if role not in chosen and role in names and role not in used}
    return Columns(chosen, labels, scale).example


def _warn_of_near_names(row: dict[str, Any]) -> None:
    for name in sorted(row.keys() - {*FIELDS, *NEGATIVES}):
        close = difflib.get_close_matches(name, ("neg", "negatives", *FIELDS), n=1, cutoff=0.75)
        if re.search(r"neg(?!ot)|reject|irrelevant|wrong", name, re.IGNORECASE):
            close = ["neg"]
        if close:
            meant = close[0].replace("negatives", "neg")
            log.warning("the column '%s' is kept as it is; did you mean '%s'?", name, meant)


def records_from_beir_folder(path: Path, split: str, rejects: BadRows) -> list[Record]:
    """Return one record for each query of a BEIR folder that has a relevant document.

    Documents judged as not relevant (grade 0 or less) become negatives, unless their text equals a positive's.
    """
    judged = read_beir(path, split, rejects)
    records = []
    for query, grades in judged.qrels.items():
        if not any(grade > 0 for grade in grades.values()):
            rejects.note("query without a relevant document")
            continue
        pos = [judged.corpus[document] for document, grade in grades.items() if grade > 0 and document in judged.corpus]
        neg = [
            judged.corpus[document] for document, grade in grades.items() if grade <= 0 and document in judged.corpus
        ]
        if not pos:
            rejects.note("query whose relevant documents are not in the corpus")
            continue
        positives = {normalise(text) for text in pos}
        kept = [text for text in neg if normalise(text) not in positives]
        for _ in range(len(neg) - len(kept)):
            rejects.note("document judged as not relevant whose text equals a relevant one's")
        records.append(Record(judged.queries[query], tuple(pos), tuple(kept), id=query))
    if not records:
        raise DataError(f"{path / 'qrels' / split}.tsv: no query has a relevant document (a score above 0)")
    return records


def files_of_split(path: Path, split: str) -> list[Path]:
    """The files to read: the path itself, or those of a folder that are named by the split (several if numbered).

    Raises:
        DataError: The folder holds none, or several that aren't parts of one.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and kind_of(file))
    chosen = [file for file in files if split_of(file) == split]
    if len(chosen) > 1 and not all(_PART.search(file.name.split(".")[0]) for file in chosen):
        raise DataError(f"{path} holds several files of the split '{split}': {', '.join(file.name for file in chosen)}")
    if not chosen:
        splits = {split_of(file) for file in files}
        raise DataError(f"{path} holds no file of the split '{split}'.{nearest(split, splits)}")
    return chosen


def split_of(path: Path) -> str:
    """Return the split that a file's name says: ``train`` of train.jsonl.gz and train-00000-of-00002.parquet."""
    name = _PART.sub("", path.name.split(".")[0])
    return "dev" if name in DEV_NAMES else name


def splits_of(source: str, config: str | None = None) -> list[str]:
    """Return the names of the splits that a folder or a data set has.

    Raises:
        DataError: A single file, which has none, or a data set that can't be had.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if is_beir(path):
            return sorted({split_of(Path(split)) for split in qrels_splits(path)})
        return sorted({split_of(file) for file in filter(kind_of, path.iterdir())})
    if path.exists():
        raise DataError(f"{source} is one file, which has no splits of its own; name a folder with train.jsonl, ...")
    preset = PRESETS.get(source.lower())
    name, config = (preset.name, config or preset.config) if preset else (source, config)
    _require_hub(name)
    from datasets import get_dataset_split_names

    try:
        names = list(get_dataset_split_names(name, config))
    except (ValueError, OSError) as error:
        raise DataError(f"the hub did not give the splits of '{name}' (config {config}): {error}") from None
    own = {theirs: ours for ours, theirs in preset.splits.items()} if preset else {"validation": "dev"}
    unlabelled = preset.unlabelled if preset else ()
    return sorted(own.get(name, name) for name in names if name not in unlabelled)


def rows_of_hub(name: str, config: str | None, split: str) -> Rows:
    """Yield the rows of a data set of the hub, streamed.

    Raises:
        DataError: No data set of that name, configuration or split, or the hub is out of reach.
    """
    _require_hub(name)
    from datasets import load_dataset

    try:
        rows = load_dataset(name, config, split=split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield f"{name}:{split}:row {number}", row
    except (ValueError, OSError) as error:
        raise DataError(f"the hub did not give '{name}' (config {config}, split {split}): {error}") from None


def _require_hub(name: str) -> None:
    if kind_of(Path(name)) or name.count("/") != 1 or name.startswith((".", "/", "~")) or " " in name:
        hint = nearest(name, PRESETS) if "/" not in name and not kind_of(Path(name)) else ""
        raise DataError(
            f"{name}: no such file or folder, and no name of a data set (owner/name).{hint or near_path(name)}"
        )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise DataError(
            f"there is no file or folder '{name}' here, and for a data set of the hub HF_HUB_OFFLINE must be unset."
            + near_path(name)
        )
    if not hub_answers():
        raise DataError(
            f"'{name}' is no file or folder here, and the hub doesn't answer; download the data set on a machine with "
            f"a network (hf download --repo-type dataset {name}) and give its file"
        )


SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Source:
    """What is read.

    Attributes:
        name: A file, a folder, or a data set of the hub.
        split: Which part of it.
        config: Which configuration of a data set of the hub.
        columns: Which column is what; told from the names without it.
        labels: Names for labels.
        scale: What scores are divided by.
    """

    name: str
    split: str = "train"
    config: str | None = None
    columns: str = ""
    labels: dict[str, str] | None = None
    scale: float | None = None

    @property
    def path(self) -> Path:
        """It as a path, which need not exist."""
        return Path(self.name).expanduser()

    def examples(self, rejects: BadRows) -> Iterator[Example]:
        """Its examples."""
        return read_examples(
            self.name,
            split=self.split,
            config=self.config,
            columns=self.columns,
            labels=self.labels,
            scale=self.scale,
            rejects=rejects,
        )
