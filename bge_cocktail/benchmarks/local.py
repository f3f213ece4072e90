"""Local data as tasks of mteb, without writing a class."""

from __future__ import annotations

import re
from typing import Any

from bge_cocktail.errors import UsageError
from bge_cocktail.provenance import hash_path
from bge_cocktail.records import read_judged
from bge_cocktail.records.labelled import read_labelled
from bge_cocktail.records.reranking import read_candidates
from bge_cocktail.records.scored import read_scored
from bge_cocktail.tasks import Task
from bge_cocktail.tasks.clustering import read_clustering
from bge_cocktail.tasks.reranking import candidate_ids

# our kind of task: mteb's type, its main score
TYPES = {
    "retrieval": ("Retrieval", "ndcg_at_10"),
    "classification": ("Classification", "accuracy"),
    "sts": ("STS", "cosine_spearman"),
    "pair-classification": ("PairClassification", "cosine_ap"),
    "clustering": ("Clustering", "v_measure"),
    "reranking": ("Reranking", "map_at_1000"),
}


def as_mteb_task(task: Task, split: str = "test") -> Any:
    """A task of mteb that holds the data of one of ours.

    Its revision is the hash of the data, so that results of other data are never taken for it.

    Args:
        task: From `tasks.open_task`.
        split: Which split is judged.

    Returns:
        An mteb task whose data are loaded.

    Raises:
        UsageError: Pairs with labels, which mteb has no task for, or a kind of task that it hasn't.
        DataError: Broken data.
    """
    if task.kind not in TYPES:
        raise UsageError(f"{task.name}: mteb has no tasks like our '{task.kind}'")
    kind, main_score = TYPES[task.kind]
    made = _class_of(kind)(_metadata(task, kind, main_score, split))
    made.dataset = {"default": _DATA[task.kind](task, split)}
    made.data_loaded = True
    if task.kind == "sts":
        scores = read_scored(task.path, split).scores
        made.min_score, made.max_score = min(scores), max(scores)
    if task.kind == "clustering":
        made.max_fraction_of_documents_to_embed = None  # all of them, not 4 %
    return made


def _class_of(kind: str) -> Any:
    from mteb import abstasks

    # reranking is a retrieval among what each query brings with it
    parent = getattr(abstasks, f"AbsTask{'Retrieval' if kind == 'Reranking' else kind}")

    # mteb reads a task's metadata from its class, so each gets a class of its own
    return lambda metadata: type(f"Local{kind}", (parent,), {"metadata": metadata, "load_data": _loaded})()


def _loaded(self: Any, **_: Any) -> None:
    self.data_loaded = True


def _metadata(task: Task, kind: str, main_score: str, split: str) -> Any:
    from mteb.abstasks.task_metadata import TaskMetadata

    return TaskMetadata(
        name=re.sub(r"[^A-Za-z0-9._-]", "-", task.name),
        dataset={"path": f"local/{task.name}", "revision": hash_path(task.path)},
        description=f"Local data: {task.name}",
        type=kind,
        category="t2t",
        eval_splits=[split],
        eval_langs=["eng-Latn"],
        main_score=main_score,
    )


def _retrieval(task: Task, split: str) -> dict[str, Any]:
    from datasets import Dataset

    judged = read_judged(task.path, split)
    return {
        split: {
            "corpus": Dataset.from_dict({"id": list(judged.corpus), "text": list(judged.corpus.values())}),
            "queries": Dataset.from_dict({"id": list(judged.queries), "text": list(judged.queries.values())}),
            "relevant_docs": {query: dict(judged.qrels[query]) for query in judged.queries},
            "top_ranked": None,
        }
    }


def _classification(task: Task, split: str) -> Any:
    from datasets import Dataset, DatasetDict

    parts = {name: read_labelled(task.path, name) for name in ("train", split)}
    if any(isinstance(text, tuple) for part in parts.values() for text in part.texts):
        raise UsageError(f"{task.name}: mteb has no classification of pairs; evaluate it as a task of ours")
    names = sorted(set(parts["train"].labels))
    return DatasetDict(
        {
            name: Dataset.from_dict({"text": list(part.texts), "label": [names.index(label) for label in part.labels]})
            for name, part in parts.items()
        }
    )


def _sts(task: Task, split: str) -> Any:
    from datasets import Dataset, DatasetDict

    pairs = read_scored(task.path, split)
    columns = {"sentence1": list(pairs.first), "sentence2": list(pairs.second), "score": list(pairs.scores)}
    return DatasetDict({split: Dataset.from_dict(columns)})


def _pairs(task: Task, split: str) -> Any:
    from datasets import Dataset, DatasetDict

    pairs = read_scored(task.path, split)
    labels = [int(score) for score in pairs.scores]
    # one row holds all pairs, as in the sets of the hub
    return DatasetDict(
        {split: Dataset.from_dict({"sentence1": list(pairs.first), "sentence2": list(pairs.second), "labels": labels})}
    )


def _clustering(task: Task, split: str) -> Any:
    from datasets import Dataset, DatasetDict

    data = read_clustering(task.path, split)
    return DatasetDict({split: Dataset.from_dict({"sentences": list(data.texts), "labels": list(data.labels)})})


def _reranking(task: Task, split: str) -> dict[str, Any]:
    from datasets import Dataset

    rows = {f"q{line}": row for line, row in enumerate(read_candidates(task.path, split), start=1)}
    texts = {
        query: dict(zip(candidate_ids(row), (*row.positive, *row.negative), strict=True)) for query, row in rows.items()
    }
    documents = {f"{query}-{one}": text for query, own in texts.items() for one, text in own.items()}
    return {
        split: {
            "corpus": Dataset.from_dict({"id": list(documents), "text": list(documents.values())}),
            "queries": Dataset.from_dict({"id": list(rows), "text": [row.query for row in rows.values()]}),
            "relevant_docs": {
                query: {f"{query}-{one}": int(one.startswith("p")) for one in own} for query, own in texts.items()
            },
            "top_ranked": {query: [f"{query}-{one}" for one in own] for query, own in texts.items()},
        }
    }


_DATA = {
    "retrieval": _retrieval,
    "classification": _classification,
    "sts": _sts,
    "pair-classification": _pairs,
    "clustering": _clustering,
    "reranking": _reranking,
}
