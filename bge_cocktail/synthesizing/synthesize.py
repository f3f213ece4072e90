"""Records and a retrieval task from documents alone: passages, queries, filters, splits."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import CocktailError, DataError
from bge_cocktail.core.outputs import new_folder, refuse_to_replace, write_json
from bge_cocktail.core.runs import RUN_FILE, describe_run, hash_path
from bge_cocktail.data.beir import CORPUS_FILE
from bge_cocktail.data.record import Record, exact_key, text_key
from bge_cocktail.data.record_files import json_line, read_records, write_records
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.models.folder import model_folder
from bge_cocktail.models.reranker import load_reranker
from bge_cocktail.options import EncodeOptions, SynthesizeOptions
from bge_cocktail.preparing.duplicates import Groups, assign_splits
from bge_cocktail.synthesizing.filters import Corpus, check_filters, filter_queries
from bge_cocktail.synthesizing.passages import Passage, cover, read_passages
from bge_cocktail.synthesizing.writers import WordStatistics, WrittenQuery, query_writers, write_queries

log = logging.getLogger(__name__)
SPLITS = ("train", "dev", "test")
BEIR_FOLDER = "beir"


@dataclass(frozen=True, slots=True)
class Synthesis:
    """What was made of a corpus.

    Attributes:
        folder: Where it lies.
        documents: How many were read, and what became of them.
        written: Queries by writer.
        left_out: For each filter, queries by writer that it left out.
        kept: Queries by writer and split.
    """

    folder: Path
    documents: Mapping[str, int]
    written: Mapping[str, int]
    left_out: Mapping[str, Mapping[str, int]]
    kept: Mapping[str, Mapping[str, int]]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "documents": dict(self.documents),
            "written": dict(self.written),
            "left_out": {name: dict(counts) for name, counts in self.left_out.items()},
            "kept": {name: dict(counts) for name, counts in self.kept.items()},
        }


def synthesize(
    corpus: Path,
    model: str | Path,
    output: Path,
    options: SynthesizeOptions | None = None,
    encoding: EncodeOptions | None = None,
    *,
    overwrite: bool = False,
) -> Synthesis:
    """Write queries for documents, leave out those that won't do, and keep the rest as records and as a task.

    The folder holds ``train.jsonl``, ``dev.jsonl`` and ``test.jsonl``, which can be mined, trained on and judged as
    they are, the passages in ``corpus.jsonl``, and in ``beir/`` dev and test as a BEIR folder. Documents are split,
    not queries: none that is asked about in test is trained on.

    Args:
        corpus: A BEIR folder, JSON Lines with ``text``, or a folder of .txt and .md files.
        model: Folder or hub name of the encoder by which passages are chosen and found again; the one to be tuned.
        output: The folder to write.
        options: How.
        encoding: How texts are embedded.
        overwrite: Replace an older output of this tool.

    Raises:
        UsageError: Options that can't go together, or an output that exists.
        DataError: With file and line of what is wrong.
        CocktailError: No query is left for train.
    """
    options, encoding = options or SynthesizeOptions(), encoding or EncodeOptions()
    real = options.test_queries
    refuse_to_replace(output, overwrite, [corpus, model, *([real] if real else [])])
    check_filters(options)
    started = time.monotonic()
    passages, documents = read_passages(corpus, options.passage_chars, options.limit)
    asked = read_records(real, split="test") if real is not None else []
    answers = _answers(asked, passages, real)
    encoder = CachedEncoder(model, encoding)
    rows = cover(passages, encoder, options.documents, options.seed) if options.documents else range(len(passages))
    of_real = {passages[row].document for found in answers for row in found}
    open_rows = [row for row in rows if passages[row].document not in of_real]
    documents = {**documents, "passages": len(passages), "with queries of their own in test": len(of_real)}
    words = WordStatistics(passage.whole for passage in passages)
    written = list(write_queries(passages, open_rows, options.writers, options.queries, words))
    reranker = load_reranker(options.reranker, device=encoding.device) if options.reranker else None
    log.info("%d queries written for %d passages", len(written), len(open_rows))
    kept, left_out = filter_queries(written, Corpus(passages, encoder, reranker), options)
    splits = split_of_documents(passages, options, with_test=real is None)
    parts: dict[str, list[WrittenQuery]] = {name: [] for name in SPLITS}
    for query in kept:
        split = splits[passages[query.passage].document]
        if split != "train" and query_writers.trait(query.writer, "train_only", False):
            left_out.setdefault("for train only", Counter())[query.writer] += 1
        else:
            parts[split].append(query)
    if not parts["train"]:
        raise CocktailError(
            f"no query is left to train on, of {len(written)} written for {len(passages)} passages"
            + "".join(f"; {name}: {counts.total()}" for name, counts in left_out.items() if counts)
        )
    synthesis = Synthesis(
        output,
        documents,
        Counter(query.writer for query in written),
        left_out,
        {name: Counter(query.writer for query in queries) for name, queries in parts.items()}
        | ({"test": {"real": len(asked)}} if asked else {}),
    )
    inputs = {str(corpus): hash_path(corpus), str(model): encoder.hash}
    inputs |= {str(real): hash_path(real)} if real is not None else {}
    inputs |= {options.reranker: hash_path(model_folder(options.reranker))} if options.reranker else {}
    used = {"synthesize": options.model_dump(mode="json"), "encode": encoding.model_dump(mode="json")}
    with new_folder(output, overwrite=overwrite) as new:
        _write(new, passages, parts, asked, answers)
        seconds = time.monotonic() - started
        described = describe_run("synthesize", options=used, inputs=inputs, seconds=seconds, **synthesis.to_json())
        write_json(new / RUN_FILE, described)
    return synthesis


def split_of_documents(passages: Sequence[Passage], options: SynthesizeOptions, *, with_test: bool) -> dict[str, str]:
    """Return the split of each document, by a hash of its text, so that new documents move no old ones.

    Args:
        passages: Of all documents.
        options: The ratio and the seed.
        with_test: Whether some are for test; else those are train's.
    """
    texts: dict[str, str] = {}
    for passage in passages:
        texts[passage.document] = texts.get(passage.document, "") + passage.whole
    train, dev, test = options.ratio
    ratio = (train, dev, test) if with_test else (train + test, dev, 0.0)
    keys = [exact_key(text) for text in texts.values()]
    numbers = assign_splits(
        Groups(len(keys)), keys, [""] * len(keys), ratio=ratio, stratify=False, seed=options.seed
    ).tolist()
    return {document: SPLITS[number] for document, number in zip(texts, numbers, strict=True)}


def _answers(asked: Sequence[Record], passages: Sequence[Passage], path: Path | None) -> list[list[int]]:
    """Rows of the passages that answer each real query.

    Raises:
        DataError: A query whose documents aren't in the corpus.
    """
    rows: dict[bytes, list[int]] = {}
    whole: dict[str, list[int]] = {}
    for row, passage in enumerate(passages):
        for text in {passage.whole, passage.text}:
            rows.setdefault(text_key(text), []).append(row)
        whole.setdefault(passage.document, []).append(row)
    # a document that was cut is known by all of its text
    for cut in whole.values():
        if len(cut) > 1:
            text = " ".join(passages[row].text for row in cut)
            for form in {text, f"{passages[cut[0]].title} {text}".strip()}:
                rows.setdefault(text_key(form), cut)
    found = []
    for record in asked:
        mine = sorted({row for text in record.pos for row in rows.get(text_key(text), ())})
        if not mine:
            raise DataError(f"{path}: no document of {record.query[:60]!r} is in the corpus")
        found.append(mine)
    return found


def _write(
    folder: Path,
    passages: Sequence[Passage],
    parts: Mapping[str, Sequence[WrittenQuery]],
    asked: Sequence[Record],
    answers: Sequence[Sequence[int]],
) -> None:
    for split, queries in parts.items():
        records = [_record(query, passages) for query in queries]
        if split == "test" and asked:
            records = [
                Record(record.query, tuple(passages[row].whole for row in rows), id=f"real{number}")
                for number, (record, rows) in enumerate(zip(asked, answers, strict=True), start=1)
            ]
        if records:
            write_records(records, folder / f"{split}.jsonl")
    lines = [{"_id": one.id, "title": one.title, "text": one.text} for one in passages]
    _write_lines(folder / CORPUS_FILE, lines)
    beir = folder / BEIR_FOLDER
    (beir / "qrels").mkdir(parents=True)
    _write_lines(beir / CORPUS_FILE, lines)
    judged = {
        split: [(query.text, [query.passage]) for query in queries]
        for split, queries in parts.items()
        if split != "train"
    }
    if asked:
        judged["test"] = [(record.query, list(rows)) for record, rows in zip(asked, answers, strict=True)]
    named = {
        split: [(f"{split}{n}", *one) for n, one in enumerate(given, 1)] for split, given in judged.items() if given
    }
    _write_lines(beir / "queries.jsonl", ({"_id": name, "text": text} for of in named.values() for name, text, _ in of))
    for split, of in named.items():
        lines_of_split = [f"{name}\t{passages[row].id}\t1" for name, _, rows in of for row in rows]
        content = "query-id\tcorpus-id\tscore\n" + "\n".join(lines_of_split) + "\n"
        (beir / f"qrels/{split}.tsv").write_text(content, encoding="utf-8")


def _record(query: WrittenQuery, passages: Sequence[Passage]) -> Record:
    return Record(query.text, (query.positive or passages[query.passage].whole,), extra={"writer": query.writer})


def _write_lines(path: Path, values: Iterable[Mapping[str, str]]) -> None:
    with path.open("wb") as file:
        for value in values:
            file.write(json_line(value))
