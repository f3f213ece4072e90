"""The texts behind scores: what was asked and wanted, for reading; and a draw of them, for a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bge_cocktail.cache import Embeddings
from bge_cocktail.encoding import Encoder
from bge_cocktail.records import read_judged
from bge_cocktail.records.labelled import Text, read_labelled
from bge_cocktail.records.reranking import read_candidates
from bge_cocktail.records.scored import read_scored
from bge_cocktail.tasks.reranking import candidate_ids
from bge_cocktail.tasks.task import Task

LONGEST = 600
# of the texts on a map of a retrieval, so many are queries; the rest are their documents, and others
QUERIES = 1 / 4


@dataclass(frozen=True, slots=True)
class Sampled:
    """A text on the map.

    Attributes:
        role: How it is embedded.
        text: All of it.
        group: What it is coloured by: its label, or what it is in a retrieval.
    """

    role: Literal["query", "document", "text"]
    text: str
    group: str


def task_texts(task: Task, split: str, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was asked and wanted, and the documents that answers name; texts are cut at 600 characters.

    Args:
        task: The task.
        split: Which was judged.
        answers: Of each model, by query or text.

    Returns:
        ``asked``: text and what is wanted (relevant documents and those judged not to be, the label, the score) by id;
        ``documents``: text by id.
    """
    if task.kind == "retrieval":
        judged = read_judged(task.path, split)
        kept = {query for one in answers for query in one}
        asked = {
            query: {
                "text": cut(text),
                "wanted": {one: grade for one, grade in judged.qrels[query].items() if grade > 0},
                "unwanted": [one for one, grade in judged.qrels[query].items() if grade <= 0],
            }
            for query, text in judged.queries.items()
            if query in kept
        }
        named = _named_documents(answers)
        return {"asked": asked, "documents": {one: cut(judged.corpus[one]) for one in sorted(named)}}
    if task.kind == "reranking":
        rows = read_candidates(task.path, split)
        return {
            "asked": {
                f"{split}:{line}": {
                    "text": cut(row.query),
                    "wanted": {one: 1 for one in candidate_ids(row) if one.startswith("p")},
                    "documents": dict(zip(candidate_ids(row), map(cut, (*row.positive, *row.negative)), strict=True)),
                }
                for line, row in enumerate(rows, start=1)
            }
        }
    if task.kind in ("sts", "pair-classification"):
        pairs = read_scored(task.path, split)
        texts: Sequence[Text] = list(zip(pairs.first, pairs.second, strict=True))
        wanted: Sequence[Any] = pairs.scores
    elif task.kind in ("classification", "clustering"):
        data = read_labelled(task.path, split)
        texts, wanted = data.texts, data.labels
    else:  # a package's own
        return {}
    return {
        "asked": {
            f"{split}:{line}": {"text": cut(one) if isinstance(one, str) else [cut(part) for part in one], "wanted": of}
            for line, (one, of) in enumerate(zip(texts, wanted, strict=True), start=1)
        }
    }


def sample_texts(task: Task, split: str, count: int, seed: int) -> list[Sampled]:
    """A draw of a task's texts: with their labels, or queries with their relevant documents and others.

    Pairs have no place on a map, and neither have texts of a package's own kinds of task.
    """
    if not count:
        return []
    generator = np.random.default_rng(seed)
    if task.kind in ("classification", "clustering"):
        data = read_labelled(task.path, split)
        rows = sorted(generator.permutation(len(data.texts))[:count].tolist())
        return [Sampled("text", text, data.labels[row]) for row in rows if isinstance(text := data.texts[row], str)]
    if task.kind != "retrieval":
        return []
    judged = read_judged(task.path, split)
    queries = [query for query, grades in judged.qrels.items() if any(grade > 0 for grade in grades.values())]
    drawn = [queries[place] for place in sorted(generator.permutation(len(queries))[: max(1, int(count * QUERIES))])]
    relevant = dict.fromkeys(one for query in drawn for one, grade in judged.qrels[query].items() if grade > 0)
    relevant_shown = list(relevant)[: 2 * len(drawn)]
    ids = list(judged.corpus)
    room = max(0, count - len(drawn) - len(relevant_shown))
    others = [one for place in generator.permutation(len(ids)).tolist() if (one := ids[place]) not in relevant][:room]
    return [
        *(Sampled("query", judged.queries[query], "query") for query in drawn),
        *(Sampled("document", judged.corpus[one], "relevant document") for one in relevant_shown),
        *(Sampled("document", judged.corpus[one], "other document") for one in others),
    ]


def embed_sample(encoder: Encoder, sample: Sequence[Sampled]) -> Embeddings:
    """Embeddings of a draw, each text in its role; shape (texts, dimensions)."""
    ways = {"query": encoder.encode_query, "document": encoder.encode_document, "text": encoder.encode_text}
    rows: dict[int, Any] = {}
    for role, way in ways.items():
        places = [place for place, one in enumerate(sample) if one.role == role]
        if places:
            rows |= dict(zip(places, way([sample[place].text for place in places]), strict=True))
    return np.stack([rows[place] for place in range(len(sample))])


def cut(text: str) -> str:
    """A text of at most 600 characters."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _named_documents(answers: Sequence[Mapping[str, Any]]) -> set[str]:
    return {
        document for one in answers for answer in one.values() for key in ("found", "ranks") for document in answer[key]
    }
