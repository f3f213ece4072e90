"""What a model is judged on: kinds of tasks, each one object of a file of its own, and tasks opened from folders."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from bge_cocktail.core.errors import CocktailError, DataError, UsageError, near_path, nearest, printable
from bge_cocktail.core.registry import Registry, own_options
from bge_cocktail.core.runs import hash_path
from bge_cocktail.data.labelled import DataFolder
from bge_cocktail.evaluating.scores import Role, Score, bootstrap_interval
from bge_cocktail.models.cache import Embeddings
from bge_cocktail.models.encoder import Encoder
from bge_cocktail.options import EvaluateOptions

LONGEST = 600
log = logging.getLogger(__name__)


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


class TaskKind(ABC):
    """How tasks of one kind are recognised, read, judged and shown.

    A file registers one object: ``tasks("name")(Kind())``, or another package by the entry point ``name`` of the group
    ``bge_cocktail.tasks``. Keywords of `judge` that have a default are options of the kind's own.

    Attributes:
        order: Kinds with lower numbers are asked first whether they recognise a folder.
        learns: Whether something is learned from the task's train split, so that scores depend on how.
        mteb: mteb's type of such tasks and their main score; empty where it has none.
    """

    order: ClassVar[int] = 50
    learns: ClassVar[bool] = False
    mteb: ClassVar[tuple[str, str] | tuple[()]] = ()

    def recognises(self, folder: DataFolder) -> bool:
        """Return whether a folder holds such a task; without this, users say ``KIND:FOLDER``."""
        return False

    @abstractmethod
    def read(self, folder: DataFolder, split: str) -> Any:
        """Return the data of a split, checked.

        Raises:
            DataError: With file and line of what is wrong.
        """

    def limited(self, data: Any, limit: int) -> Any:
        """Return data with so many queries, texts or pairs, for a first try; all of them where a kind doesn't say how.

        Args:
            data: From `read`.
            limit: How many, evenly spread over all.
        """
        return data

    @abstractmethod
    def judge(self, encoder: Encoder, task: Task, options: EvaluateOptions) -> list[Score]:
        """Return an encoder's scores on a task, the main one first; `Task.data` has been read."""

    def texts(self, data: Any, split: str, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what a reader of answers needs: texts and what would have been right.

        Args:
            data: From `read`.
            split: Which one.
            answers: Of each model, by query or text.

        Returns:
            ``asked``: text and what is wanted (relevant documents and those judged not to be, the label, the score) by
            id; ``documents``: text by id. Texts are cut at 600 characters.
        """
        return {}

    def map_texts(self, data: Any, count: int, generator: np.random.Generator) -> list[MapText]:
        """Return a draw of texts for a map; none where texts have no place on one."""
        return []

    def to_mteb(self, task: Task, split: str, made: Any) -> None:
        """Give a task of mteb (of the type that `mteb` names) the data: set its ``dataset``.

        Raises:
            UsageError: The kind names a type and doesn't say how its data are given.
        """
        named = " ".join(self.mteb)
        raise UsageError(f"the kind '{task.kind}' names mteb's {named}, and lacks a to_mteb that gives data")


tasks = Registry[TaskKind](
    "tasks",
    [f"bge_cocktail.evaluating.tasks.{name}" for name in ("retrieval", "labelled", "pairs", "reranking")],
    TaskKind,
)


Counted = TypeVar("Counted")


@dataclass(frozen=True)
class Task:
    """Data of a folder that models are judged on; each split is read once, however often it is judged.

    Attributes:
        name: The folder's name.
        kind: Which of the registered kinds it is.
        role: Whether it is tuned for (target) or must not get worse (general).
        path: Its folder.
        limit: How many queries, texts or pairs are judged, evenly spread over all; None for all.
    """

    name: str
    kind: str
    role: Role
    path: Path
    limit: int | None = None
    _folder: DataFolder | None = field(default=None, repr=False, compare=False)
    _data: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _counted: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def hash(self) -> str:
        """Of all files in the folder."""
        return hash_path(self.path)

    def data(self, split: str) -> Any:
        """Return a split's data, as its kind reads them.

        Raises:
            DataError: With file and line of what is wrong.
        """
        if split not in self._data:
            _ = self.hash  # of what is read now, whenever it is asked for
            folder = self._folder or DataFolder(self.path)
            data = tasks[self.kind].read(folder, split)
            self._data[split] = tasks[self.kind].limited(data, self.limit) if self.limit else data
            folder.forget()
        return self._data[split]

    def counted(self, split: str, count: Callable[[Any], Counted]) -> Counted:
        """Return what was counted in a split's data, once for all that are judged by it."""
        if split not in self._counted:
            self._counted[split] = count(self.data(split))
        counted: Counted = self._counted[split]
        return counted

    def judge(self, encoder: Encoder, options: EvaluateOptions) -> list[Score]:
        """Return an encoder's scores, the main one first."""
        kind = tasks[self.kind]
        self.data(options.split)
        return kind.judge(encoder, self, options, **own_options(kind.judge, (), options.plugin_options))

    def texts(self, split: str, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what a reader of answers needs; see `TaskKind.texts`."""
        return tasks[self.kind].texts(self.data(split), split, answers)

    def map_texts(self, split: str, count: int, seed: int) -> list[MapText]:
        """Return a draw of at most `count` texts for a map."""
        if not count:
            return []
        return tasks[self.kind].map_texts(self.data(split), count, np.random.default_rng(seed))

    def score(self, metric: str, value: float, interval: tuple[float, float], count: int, **more: Any) -> Score:
        """Return a score of this task; `more` as in `Score`."""
        return Score(self.name, self.kind, self.role, metric, value, interval, count, **more)


def interval_of(options: EvaluateOptions) -> partial[tuple[float, float]]:
    """Return `bootstrap_interval` with the confidence and the seed of an evaluation."""
    return partial(bootstrap_interval, confidence=options.confidence, seed=options.seed)


def open_task(path: str | Path, role: Role) -> Task:
    """Recognise a task by the files in its folder.

    Args:
        path: A BEIR folder or a folder that `prepare` wrote (retrieval); a folder with splits (JSON Lines, CSV, TSV,
            Parquet) train and test of text and label, or premise, hypothesis and label (classification); one with a
            test of sentence1, sentence2 and score: any number (sts), or 0 and 1 (pair-classification); or of query,
            positive and negative (reranking). ``KIND:FOLDER`` says the kind, such as ``clustering:FOLDER`` for
            labelled texts.
        role: target or general.

    Raises:
        UsageError: There is no such kind.
        DataError: The folder is neither.
    """
    kind, path = task_path(path)
    name = path.resolve().name
    if printable(name) != name or "\n" in name:
        raise DataError(f"{name!r} has control characters in its name, which names the task; rename the folder")
    if not path.exists():
        raise DataError(f"{path}: no such folder.{near_path(str(path))}")
    folder = DataFolder(path)
    if kind:
        return Task(f"{path.resolve().name} ({kind})", kind, role, path, _folder=folder)
    for name in sorted(tasks, key=lambda name: tasks[name].order):
        if _recognises(name, folder):
            return Task(path.resolve().name, name, role, path, _folder=folder)
    raise DataError(
        f"{path} is no task: expected a BEIR folder (corpus.jsonl, queries.jsonl, qrels/), "
        "records (test.jsonl), labelled texts (train.jsonl, test.jsonl), scored pairs or candidates (test.jsonl)"
    )


def _recognises(kind: str, folder: DataFolder) -> bool:
    """Return whether a folder is of a kind; a kind of another package that fails to tell doesn't stop the others."""
    try:
        return tasks[kind].recognises(folder)
    except CocktailError:
        raise
    except Exception as error:
        log.warning("the kind of task '%s' can't tell whether %s is one: %r", kind, folder.path, error)
        return False


def task_path(given: str | Path) -> tuple[str, Path]:
    """Return the kind that ``KIND:FOLDER`` names (empty without one), and the folder.

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


def rows_of_texts(texts: Sequence[str | tuple[str, str]], right: Sequence[Any], split: str) -> dict[str, Any]:
    """Return, for `TaskKind.texts`, texts or pairs by line, each with its label or score."""
    return {
        "asked": {
            f"{split}:{line}": {
                "text": cut(text) if isinstance(text, str) else [cut(part) for part in text],
                "wanted": label,
            }
            for line, (text, label) in enumerate(zip(texts, right, strict=True), start=1)
        }
    }


def embed_sample(encoder: Encoder, sample: Sequence[MapText]) -> Embeddings:
    """Embed a draw, each text in its role; shape (texts, dimensions)."""
    ways = {"query": encoder.encode_query, "document": encoder.encode_document, "text": encoder.encode_text}
    rows: dict[int, Any] = {}
    for role, way in ways.items():
        places = [place for place, text in enumerate(sample) if text.role == role]
        if places:
            rows |= dict(zip(places, way([sample[place].text for place in places]), strict=True))
    return np.stack([rows[place] for place in range(len(sample))])


def cut(text: str) -> str:
    """Return at most 600 characters of a text."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
