"""From a folder of data to a task, and from tasks to scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bge_cocktail.encoding import Encoder
from bge_cocktail.errors import DataError, UsageError, nearest
from bge_cocktail.options import Evaluating
from bge_cocktail.ranking import parse_measure
from bge_cocktail.records import holds_records, read_judged
from bge_cocktail.records.beir import is_beir
from bge_cocktail.records.labelled import is_labelled
from bge_cocktail.records.reranking import is_reranking, read_candidates
from bge_cocktail.records.scored import any_split, is_scored, read_scored
from bge_cocktail.tasks import clustering, pairs, reranking, retrieval  # noqa: F401  (they register themselves)
from bge_cocktail.tasks.classification import read_dev, read_split
from bge_cocktail.tasks.clustering import read_clustering
from bge_cocktail.tasks.pairs import check_binary
from bge_cocktail.tasks.score import Role, Score, tasks


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
        read_judged(task.path, split)
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


def evaluate(encoder: Encoder, task_list: Sequence[Task], options: Evaluating | None = None) -> list[Score]:
    """Judge an encoder on tasks.

    Args:
        encoder: Embeds queries, documents and texts.
        task_list: From `open_task`.
        options: Depth, split, intervals.

    Returns:
        The scores of each task, its main metric first.
    """
    options = options or Evaluating()
    for name in options.metrics:
        parse_measure(name)  # a wrong name is said before anything is embedded
    return [
        score for task in task_list for score in tasks[task.kind](encoder, task.path, task.name, task.role, options)
    ]
