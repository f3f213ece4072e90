"""A retrieval task from whatever holds one: a BEIR folder, a prepared folder, a file of records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from bge_cocktail.data.beir import (
    CORPUS_FILE,
    RetrievalData,
    corpus_of,
    is_beir,
    read_beir,
    read_documents,
)
from bge_cocktail.data.readers import BadRows
from bge_cocktail.data.record import Record, normalise
from bge_cocktail.data.record_files import read_records


def retrieval_from_records(records: Iterable[Record], corpus: Mapping[str, str] | None = None) -> RetrievalData:
    """Records as a retrieval task: every text of theirs is a document, the positives are relevant.

    Args:
        records: Queries with positives and negatives.
        corpus: More documents, by id; a positive that is one of them, to the letter or else in its normalised form,
            counts as that one.
    """
    documents = dict(corpus or {})
    name_of: dict[str, str] = {}
    alike: dict[str, str] = {}
    for name, text in documents.items():
        name_of.setdefault(text, name)
        alike.setdefault(normalise(text), name)
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for record in records:
        query = queries.setdefault(normalise(record.query), record.query)
        for text in (*record.pos, *record.neg):
            if text not in name_of and corpus and normalise(text) in alike:
                name_of[text] = alike[normalise(text)]
            if text not in name_of:
                name_of[text] = f"record-document-{len(documents)}" if corpus else f"d{len(documents)}"
                documents[name_of[text]] = text
        grades = qrels.setdefault(normalise(query), {})
        grades.update({name_of[text]: 1 for text in record.pos})
    return RetrievalData(documents, queries, qrels)


def sample_retrieval(judged: RetrievalData, *, queries: int, documents: int, seed: int) -> RetrievalData:
    """Return a smaller retrieval task: a draw of the queries, their relevant documents, and a draw of the others.

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
    return RetrievalData(
        {name: text for name, text in judged.corpus.items() if name in chosen},
        {query: judged.queries[query] for query in kept},
        {query: judged.qrels[query] for query in kept},
    )


def read_retrieval(path: Path, split: str, records: Iterable[Record] | None = None) -> RetrievalData:
    """Return queries, documents and judgements.

    Args:
        path: A BEIR folder, a folder that `prepare` wrote (with its corpus, if it has one), or a file of records,
            whose texts are the documents.
        split: Which split of a folder.
        records: Those of the folder, where they have been read already.

    Raises:
        DataError: With file and line of what is wrong.
    """
    if is_beir(path):
        return read_beir(path, split)
    corpus = corpus_of(path) if path.is_dir() else None
    documents = dict(read_documents(corpus / CORPUS_FILE, BadRows())) if corpus else {}
    return retrieval_from_records(read_records(path, split=split) if records is None else records, documents)
