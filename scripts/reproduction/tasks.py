"""Tasks of a reproduction: drawn from larger data sets, written as folders that `evaluate` reads, and as records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bge_cocktail.core.errors import DataError
from bge_cocktail.data.beir import read_beir
from bge_cocktail.data.examples import LabelledText, RecordExample, TextPair, records_from_labels, records_from_pairs
from bge_cocktail.data.record import Record, normalise
from bge_cocktail.data.record_files import read_records, write_records
from bge_cocktail.data.sources import files_of_split, read_examples
from bge_cocktail.mining.miner import mine
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.options import EncodeOptions, MineOptions

Kind = Literal["retrieval", "labels", "sts", "pairs"]


@dataclass(frozen=True)
class TaskSource:
    """Where a task comes from.

    Attributes:
        name: What tables call it.
        kind: A BEIR folder (retrieval), labelled texts (labels), pairs with a score (sts), or queries with their
            positives and no judgements (pairs), of which dev and test are held out.
        source: A folder, or a data set of the hub.
        config: Its configuration on the hub.
        columns: As `prepare --columns` takes them; told from the names without it.
        scale: What scores are divided by.
        train: How much is drawn of train, if it is another number than of the other tasks.
    """

    name: str
    kind: Kind
    source: str
    config: str | None = None
    columns: str = ""
    scale: float | None = None
    train: int | None = None


@dataclass(frozen=True)
class Sizes:
    """How much is drawn of each task; None takes all.

    Attributes:
        train: Records, or labelled texts.
        dev: Queries, texts or pairs that choose.
        test: Those that judge.
        documents: Of a corpus; all that are relevant to dev and test are in it.
        negatives: Mined for each record.
    """

    train: int | None = 250
    dev: int | None = 80
    test: int | None = 150
    documents: int | None = 500
    negatives: int = 3


EXAMPLE_NEGATIVES = 7  # as LM-Cocktail has them
ALIKE, UNLIKE = 0.7, 0.4
"""Scores from and below which a pair's second text is a positive and a negative, where examples are made of pairs."""
# draws are the same for all seeds: seeds are those of trainings
DRAW = 0


def prepare_tasks(
    sources: Iterable[TaskSource],
    folder: Path,
    sizes: Sizes,
    base: Path,
    encoding: EncodeOptions,
    mining: MineOptions | None = None,
) -> None:
    """Write each task that isn't written yet: what judges it, train.jsonl to tune on, examples.jsonl for weights."""
    mining = (mining or MineOptions(depth=50)).model_copy(update={"negatives": sizes.negatives})
    for source in sources:
        place = folder / source.name
        if (place / "examples.jsonl").is_file():
            continue
        (place / source.name).mkdir(parents=True, exist_ok=True)
        own = sizes if source.train is None else replace(sizes, train=source.train)
        records, examples, corpus = _WRITE[source.kind](source, place / source.name, own)
        encoder = CachedEncoder(base, encoding)
        if corpus:
            records = mine(records, encoder, mining, corpus=corpus).records
            more = MineOptions(negatives=EXAMPLE_NEGATIVES, depth=100, relative_margin=None, pad=True)
            examples = mine(examples, encoder, more, corpus=corpus, known_positives=records).records
        write_records(records, place / "train.jsonl")
        write_records(examples, place / "examples.jsonl")


def task_folder(folder: Path, name: str) -> Path:
    """Return what judges a task."""
    return folder / name / name


def training_records(folder: Path, name: str) -> list[Record]:
    """Return what is tuned on for a task."""
    return read_records(folder / name / "train.jsonl")


def examples_of(folder: Path, name: str, count: int) -> list[Record]:
    """Return the first examples of a task, for weights."""
    return read_records(folder / name / "examples.jsonl")[:count]


Written = tuple[list[Record], list[Record], list[str]]
"""Records to tune on, examples from dev, and the corpus to mine both from (empty where they have their negatives)."""


def _retrieval(source: TaskSource, place: Path, sizes: Sizes) -> Written:
    parts = {split: read_beir(Path(source.source), split) for split in ("train", "dev", "test")}
    counts = {"train": sizes.train, "dev": sizes.dev, "test": sizes.test}
    corpus = parts["test"].corpus
    judged = {
        split: {
            parts[split].queries[query]: {
                document: grade for document, grade in parts[split].qrels[query].items() if document in corpus
            }
            for query in _some(list(parts[split].queries), counts[split])
        }
        for split in parts
    }
    return _write_retrieval(place, corpus, judged, sizes.documents)


def _pairs(source: TaskSource, place: Path, sizes: Sizes) -> Written:
    """Queries with positives: dev and test are drawn, and the positives of all are the corpus."""
    given = read_examples(source.source, config=source.config, columns=source.columns)
    records = [example.record for example in given if isinstance(example, RecordExample)]
    first: dict[str, Record] = {}
    for record in records:  # a query that is asked twice would stand in two splits
        first.setdefault(normalise(record.query), record)
    drawn = _some(list(first.values()), None)
    ids: dict[str, str] = {}
    corpus: dict[str, str] = {}
    for record in drawn:
        for text in record.pos:
            corpus.setdefault(ids.setdefault(normalise(text), f"d{len(ids)}"), text)
    counts = {"test": sizes.test or len(drawn) // 10, "dev": sizes.dev or len(drawn) // 5, "train": sizes.train}
    judged: dict[str, dict[str, dict[str, int]]] = {}
    for split, count in counts.items():
        some, drawn = drawn[:count], drawn[count:] if count is not None else []
        judged[split] = {record.query: {ids[normalise(text)]: 1 for text in record.pos} for record in some}
    return _write_retrieval(place, corpus, judged, sizes.documents)


def _write_retrieval(
    place: Path, corpus: Mapping[str, str], judged: Mapping[str, Mapping[str, Mapping[str, int]]], documents: int | None
) -> Written:
    """Write dev and test of a task with what is relevant to them and a draw of other documents.

    Args:
        place: The folder.
        corpus: All documents.
        judged: For each split the grades of documents by the text of the query.
        documents: How many there shall be, at least those that are relevant.
    """
    relevant = {split: {d for of in queries.values() for d in of} for split, queries in judged.items()}
    needed = sorted(relevant["dev"] | relevant["test"])
    others = _some([document for document in corpus if document not in set(needed)], None)
    room = len(corpus) if documents is None else max(documents - len(needed), 0)
    kept = {document: corpus[document] for document in [*needed, *others[:room]]}
    _write_lines(place / "corpus.jsonl", ({"_id": document, "text": text} for document, text in kept.items()))
    ids = {query: f"q{number}" for number, query in enumerate([*judged["dev"], *judged["test"]])}
    _write_lines(place / "queries.jsonl", ({"_id": name, "text": query} for query, name in ids.items()))
    (place / "qrels").mkdir(exist_ok=True)
    for split in ("dev", "test"):
        lines = [f"{ids[query]}\t{d}\t{grade}" for query, of in judged[split].items() for d, grade in of.items()]
        (place / f"qrels/{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n")
    records = {
        split: [
            Record(query, texts)
            for query, of in queries.items()
            if (texts := tuple(corpus[document] for document, grade in of.items() if grade > 0))
        ]
        for split, queries in judged.items()
    }
    mined_from = [*kept.values(), *(corpus[document] for document in sorted(relevant["train"] - kept.keys()))]
    return records["train"], records["dev"], mined_from


def _labels(source: TaskSource, place: Path, sizes: Sizes) -> Written:
    splits = _splits(source, sizes)
    drawn: dict[str, list[LabelledText]] = {}
    for split, examples in splits.items():
        drawn[split] = [example for example in examples if isinstance(example, LabelledText)]
        _write_lines(place / f"{split}.jsonl", ({"text": one.text, "label": one.label} for one in drawn[split]))
    dropped: Counter[str] = Counter()
    records = records_from_labels(drawn["train"], negatives=sizes.negatives, seed=DRAW, dropped=dropped)
    # what a text of dev is compared with are texts of train, of which there are more of its class
    examples = records_from_labels(
        [*drawn["dev"], *drawn["train"]], negatives=EXAMPLE_NEGATIVES, seed=DRAW, dropped=dropped
    )
    asked = {one.text for one in drawn["dev"]}
    return records, [record for record in examples if record.query in asked], []


def _sts(source: TaskSource, place: Path, sizes: Sizes) -> Written:
    splits = _splits(source, sizes)
    drawn: dict[str, list[TextPair]] = {}
    for split, examples in splits.items():
        drawn[split] = [example for example in examples if isinstance(example, TextPair)]
        rows = ({"sentence1": one.first, "sentence2": one.second, "score": one.score} for one in drawn[split])
        if split != "train":  # with one it would be a task of labels
            _write_lines(place / f"{split}.jsonl", rows)
    dropped: Counter[str] = Counter()
    # all pairs with their scores, for the loss that orders them
    records = records_from_pairs(drawn["train"], positive_from=0.0, negative_below=0.0, dropped=dropped)
    examples = records_from_pairs(drawn["dev"], positive_from=ALIKE, negative_below=UNLIKE, dropped=dropped)
    seconds = [pair.second for pair in drawn["dev"]]
    generator = np.random.default_rng(DRAW)
    filled = []
    for example in examples:
        own = {normalise(text) for text in example.pos}
        others = [text for text in seconds if normalise(text) not in own]
        more = generator.choice(len(others), EXAMPLE_NEGATIVES, replace=False).tolist()
        negatives = tuple(dict.fromkeys([*example.neg, *(others[row] for row in more)]))[:EXAMPLE_NEGATIVES]
        filled.append(replace(example, pos=example.pos[:1], neg=negatives, pos_scores=(), neg_scores=()))
    return records, filled, []


_WRITE = {"retrieval": _retrieval, "labels": _labels, "sts": _sts, "pairs": _pairs}


def _splits(source: TaskSource, sizes: Sizes) -> dict[str, list[Any]]:
    """The examples of each split; where there is no dev, a third of train becomes it."""
    found = {}
    path = Path(source.source)
    for split in ("train", "dev", "test"):
        try:
            if path.exists():
                files_of_split(path, split)
        except DataError:
            continue
        given = read_examples(
            source.source, split=split, config=source.config, columns=source.columns, scale=source.scale
        )
        found[split] = _some(list(given), None)
    if "dev" not in found:
        third = len(found["train"]) // 3
        found["dev"], found["train"] = found["train"][:third], found["train"][third:]
    counts = {"train": sizes.train, "dev": sizes.dev, "test": sizes.test}
    return {split: examples[: counts[split]] for split, examples in found.items()}


def _some(things: list[Any], count: int | None) -> list[Any]:
    order = np.random.default_rng(DRAW).permutation(len(things)).tolist()
    return [things[row] for row in order[:count]]


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
