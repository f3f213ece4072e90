"""From a folder of data to a task, and from tasks to scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bge_cocktail.encoding import Encoder
from bge_cocktail.errors import DataError
from bge_cocktail.options import Evaluating
from bge_cocktail.ranking import parse_measure
from bge_cocktail.records import holds_records, read_judged
from bge_cocktail.records.beir import is_beir
from bge_cocktail.records.labelled import is_labelled
from bge_cocktail.records.scored import any_split, is_scored, read_scored
from bge_cocktail.tasks import pairs, retrieval  # noqa: F401  (they register themselves)
from bge_cocktail.tasks.classification import read_split
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
            text and label, or premise, hypothesis and label (classification); or one of test.jsonl with sentence1,
            sentence2 and score: any number (sts), or 0 and 1 (pair-classification).
        role: target or general.

    Raises:
        DataError: The folder is neither.
    """
    path = Path(path)
    if is_scored(path):
        kind = "pair-classification" if read_scored(path, any_split(path) or "test").binary else "sts"
    elif is_beir(path) or (path.is_dir() and holds_records(path)):
        kind = "retrieval"
    elif is_labelled(path):
        kind = "classification"
    else:
        raise DataError(
            f"{path} is no task: expected a BEIR folder (corpus.jsonl, queries.jsonl, qrels/), "
            "records (test.jsonl), labelled texts (train.jsonl, test.jsonl) or scored pairs (test.jsonl)"
        )
    return Task(path.resolve().name, kind, role, path)


def check_task(task: Task, split: str) -> None:
    """Read a task's data, so that what is wrong with it is known before it is needed.

    Raises:
        DataError: With file and line of what is wrong.
    """
    if task.kind == "retrieval":
        read_judged(task.path, split)
    elif task.kind == "classification":
        read_split(task.path, split)
    else:
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
