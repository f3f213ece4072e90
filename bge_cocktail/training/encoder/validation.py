"""What is looked at while a model is tuned: dev, and what it could already do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bge_cocktail.data.beir import RetrievalData
from bge_cocktail.data.record import Record
from bge_cocktail.data.retrieval import sample_retrieval
from bge_cocktail.evaluating.evaluate import TaskPath, evaluate, open_tasks
from bge_cocktail.evaluating.tasks.retrieval import judge
from bge_cocktail.evaluating.tasks.task import Task
from bge_cocktail.losses.total import Embedded, LossSettings, batch_targets, total_loss
from bge_cocktail.models.encoder import LoadedEncoder
from bge_cocktail.models.prompts import Prompts
from bge_cocktail.options import EvaluateOptions, TrainOptions
from bge_cocktail.training.engine.run import DEV_METRIC, PRIMARY

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

# queries in a batch of the dev loss, whatever the batches of training, so that runs can be compared
DEV_BATCH = 32


# seeds the draw of what is evaluated, whatever the seed of training, for the same reason
DRAW = 13


class MemoryEncoder:
    """An encoder that embeds each text once, for as long as it lives."""

    def __init__(self, encoder: LoadedEncoder) -> None:
        self._encoder = encoder
        self._rows: dict[tuple[str, str | None, str], NDArray[np.float32]] = {}

    def encode_query(self, texts: Sequence[str], prompt: str | None = None) -> NDArray[np.float32]:
        """Embed queries."""
        return self._find("query", texts, prompt, lambda new: self._encoder.encode_query(new, prompt))

    def encode_document(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed documents."""
        return self._find("document", texts, None, self._encoder.encode_document)

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed other texts."""
        return self._encoder.encode_text(texts)

    def _find(
        self,
        role: str,
        texts: Sequence[str],
        prompt: str | None,
        embed: Callable[[list[str]], NDArray[np.float32]],
    ) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(texts) if (role, prompt, text) not in self._rows]
        if new:
            self._rows |= {(role, prompt, text): row for text, row in zip(new, embed(new), strict=True)}
        return np.stack([self._rows[role, prompt, text] for text in texts])


def make_validation(
    dev: RetrievalData | None,
    general: Sequence[TaskPath],
    options: TrainOptions,
    prompts: Prompts,
    precision: str,
) -> Callable[[SentenceTransformer], dict[str, float]] | None:
    """Return a function that judges the model as it is.

    Args:
        dev: A retrieval task; gives ``dev_nDCG@10`` and ``dev_loss``, InfoNCE in batches.
        general: Folders of tasks; each gives ``general_NAME``, its main score.
        options: How much of them is looked at.
        prompts: Put before every text.
        precision: Of the training.

    Returns:
        The function, or None where there is nothing to watch.
    """
    if dev is None and not general:
        return None
    smaller = _smaller(dev, options) if dev is not None else None
    tasks = [(task, _smaller_task(task, options)) for task in open_watched(general)]
    judging = EvaluateOptions(split=options.general_split)

    def metrics(model: SentenceTransformer) -> dict[str, float]:
        loaded = LoadedEncoder(
            model,
            prompts,
            precision="bf16" if precision == "bf16" else "fp32",
        )
        values: dict[str, float] = {}
        if smaller is not None:
            encoder = MemoryEncoder(loaded)
            values[PRIMARY] = _mean(judge(encoder, smaller)[DEV_METRIC])
            values["dev_loss"] = _loss(encoder, smaller, options)
        for task, judged in tasks:
            if judged is not None:
                values[f"general_{task.name}"] = _mean(judge(loaded, judged)[DEV_METRIC])
            else:
                main = [score for score in evaluate(loaded, [task], judging) if score.main]
                values[f"general_{task.name}"] = main[0].value
        return values

    return metrics


def open_watched(general: Sequence[TaskPath]) -> list[Task]:
    """Return the general tasks that are watched, opened."""
    return open_tasks([], general) if general else []


def check_general(general: Sequence[TaskPath], split: str) -> None:
    """Read the general tasks.

    Raises:
        UsageError, DataError: One can't be judged on this split.
    """
    for task in open_watched(general):
        task.data(split)


def _smaller(judged: RetrievalData, options: TrainOptions) -> RetrievalData:
    return sample_retrieval(judged, queries=options.dev_queries, documents=options.dev_documents, seed=DRAW)


def _smaller_task(task: Task, options: TrainOptions) -> RetrievalData | None:
    data = task.data(options.general_split)
    return _smaller(data, options) if isinstance(data, RetrievalData) else None


def _loss(encoder: MemoryEncoder, judged: RetrievalData, options: TrainOptions) -> float:
    """InfoNCE of dev with in-batch negatives; the mean over the queries."""
    import torch

    losses_found = {
        query: [judged.corpus[name] for name, grade in grades.items() if grade > 0 and name in judged.corpus]
        for query, grades in judged.qrels.items()
    }
    records = [Record(judged.queries[query], tuple(texts)) for query, texts in losses_found.items() if texts]
    settings = LossSettings(temperature=options.temperature)
    total = 0.0
    for start in range(0, len(records), DEV_BATCH):
        batch = records[start : start + DEV_BATCH]
        targets = batch_targets(batch, negatives=options.negatives)
        embedded = Embedded(
            torch.from_numpy(encoder.encode_query([record.query for record in batch])),
            torch.from_numpy(encoder.encode_document(targets.documents)),
            *map(torch.from_numpy, (targets.relevance, targets.own, targets.scores)),
        )
        total += float(total_loss(embedded, settings)["info-nce"]) * len(batch)
    return total / len(records)


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)
