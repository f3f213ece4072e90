"""From a folder of data to a task, and from tasks to scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bge_cocktail.core.errors import DataError, UsageError, nearest
from bge_cocktail.data.beir import is_beir
from bge_cocktail.data.labelled import (
    any_split,
    is_labelled,
    is_reranking,
    is_scored,
    read_candidates,
    read_labelled,
    read_scored,
)
from bge_cocktail.data.record import Text
from bge_cocktail.data.retrieval import holds_records, read_retrieval
from bge_cocktail.evaluating.scores import Role, tasks
from bge_cocktail.evaluating.tasks.labelled import read_clustering, read_dev, read_split
from bge_cocktail.evaluating.tasks.pairs import check_binary
from bge_cocktail.evaluating.tasks.reranking import candidate_ids
from bge_cocktail.models.cache import Embeddings
from bge_cocktail.models.encoder import Encoder


@dataclass(frozen=True, slots=True)
class Task:
    """Something that a model is judged on.

    Attributes:
        name: The folder's name.
        kind: Which of the registered tasks it is.
        role: Whether it is tuned for (target) or must not get worse (general).
        path: Its folder.
    """

    name: str
    kind: str
    role: Role
    path: Path


def open_task(path: str | Path, role: Role) -> Task:
    """Recognise a task by the files in its folder.

    Args:
        path: A BEIR folder or a folder that `prepare` wrote (retrieval); a folder of train.jsonl and test.jsonl with
            text and label, or premise, hypothesis and label (classification); one of test.jsonl with sentence1,
            sentence2 and score: any number (sts), or 0 and 1 (pair-classification); or with query, positive and
            negative (reranking). ``KIND:FOLDER`` says the kind, such as ``clustering:FOLDER`` for labelled texts.
        role: target or general.

    Raises:
        UsageError: There is no such kind.
        DataError: The folder is neither.
    """
    kind, path = task_path(path)
    if kind:
        return Task(f"{path.resolve().name} ({kind})", kind, role, path)
    if is_scored(path):
        kind = "pair-classification" if read_scored(path, any_split(path) or "test").binary else "sts"
    elif is_reranking(path):
        kind = "reranking"
    elif is_beir(path) or (path.is_dir() and holds_records(path)):
        kind = "retrieval"
    elif is_labelled(path):
        kind = "classification"
    else:
        raise DataError(
            f"{path} is no task: expected a BEIR folder (corpus.jsonl, queries.jsonl, qrels/), "
            "records (test.jsonl), labelled texts (train.jsonl, test.jsonl), scored pairs or candidates (test.jsonl)"
        )
    return Task(path.resolve().name, kind, role, path)


def task_path(given: str | Path) -> tuple[str, Path]:
    """The kind that ``KIND:FOLDER`` names (empty without one), and the folder.

    Raises:
        UsageError: There is no such kind.
    """
    kind, colon, folder = str(given).partition(":")
    if not colon or not folder or Path(given).exists():
        return "", Path(given)
    if kind not in tasks:
        raise UsageError(f"{given}: no kind of task is called '{kind}'; there are {', '.join(tasks)}."
                         f"{nearest(kind, tasks)}")  # fmt: skip
    return kind, Path(folder)


def check_task(task: Task, split: str) -> None:
    """Read a task's data, so that what is wrong with it is known before it is needed.

    Raises:
        DataError: With file and line of what is wrong.
    """
    if task.kind == "retrieval":
        read_retrieval(task.path, split)
    elif task.kind == "classification":
        read_dev(task.path, split, read_split(task.path, split)[0])
    elif task.kind == "clustering":
        read_clustering(task.path, split)
    elif task.kind == "reranking":
        read_candidates(task.path, split)
    elif task.kind in ("sts", "pair-classification"):
        pairs = read_scored(task.path, split)
        if task.kind == "pair-classification":
            check_binary(pairs, task.name, split)


LONGEST = 600
# of the texts on a map of a retrieval, so many are queries; the rest are their documents, and others
QUERIES = 1 / 4


@dataclass(frozen=True, slots=True)
class MapText:
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
        judged = read_retrieval(task.path, split)
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


def sample_texts(task: Task, split: str, count: int, seed: int) -> list[MapText]:
    """A draw of a task's texts: with their labels, or queries with their relevant documents and others.

    Pairs have no place on a map, and neither have texts of a package's own kinds of task.
    """
    if not count:
        return []
    generator = np.random.default_rng(seed)
    if task.kind in ("classification", "clustering"):
        data = read_labelled(task.path, split)
        rows = sorted(generator.permutation(len(data.texts))[:count].tolist())
        return [MapText("text", text, data.labels[row]) for row in rows if isinstance(text := data.texts[row], str)]
    if task.kind != "retrieval":
        return []
    judged = read_retrieval(task.path, split)
    queries = [query for query, grades in judged.qrels.items() if any(grade > 0 for grade in grades.values())]
    drawn = [queries[place] for place in sorted(generator.permutation(len(queries))[: max(1, int(count * QUERIES))])]
    relevant = dict.fromkeys(one for query in drawn for one, grade in judged.qrels[query].items() if grade > 0)
    relevant_shown = list(relevant)[: 2 * len(drawn)]
    ids = list(judged.corpus)
    room = max(0, count - len(drawn) - len(relevant_shown))
    others = [one for place in generator.permutation(len(ids)).tolist() if (one := ids[place]) not in relevant][:room]
    return [
        *(MapText("query", judged.queries[query], "query") for query in drawn),
        *(MapText("document", judged.corpus[one], "relevant document") for one in relevant_shown),
        *(MapText("document", judged.corpus[one], "other document") for one in others),
    ]


def embed_sample(encoder: Encoder, sample: Sequence[MapText]) -> Embeddings:
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
