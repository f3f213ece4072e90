"""The contrastive losses: pure functions of embeddings, and the batches that they judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.records import Record, normalise

if TYPE_CHECKING:
    from torch import Tensor

LEFT_OUT = -1.0


def info_nce(queries: Tensor, documents: Tensor, relevance: Tensor, temperature: float) -> Tensor:
    """InfoNCE over in-batch and hard negatives (van den Oord et al., arXiv:1807.03748).

    For query i with positive p: ``-log(exp(s_ip / t) / sum_j exp(s_ij / t))``, j running over the positive and
    the negatives; the mean over the queries, by weight.

    Args:
        queries: Unit-norm embeddings, shape (queries, dimensions).
        documents: Unit-norm embeddings, shape (documents, dimensions).
        relevance: Shape (queries, documents), as `batch_relevance` makes it.
        temperature: Divides similarities.

    Returns:
        The loss, a scalar.
    """
    import torch

    similarities = queries @ documents.T / temperature  # (queries, documents)
    weights, positives = relevance.max(dim=1)
    candidates = similarities.masked_fill(relevance < 0, -torch.inf)
    each = torch.nn.functional.cross_entropy(candidates, positives, reduction="none")
    return (each * weights).sum() / weights.sum()


def batch_relevance(
    records: Sequence[Record],
    *,
    negatives: int,
    known_positives: Mapping[str, set[str]] | None = None,
) -> tuple[list[str], NDArray[np.float32]]:
    """The documents of a batch, each once, and what each is to each query.

    Args:
        records: The batch; the first positive of each is the one to find.
        negatives: Hard negatives taken of each record, the first ones.
        known_positives: From `positives_by_query`, to know positives that other records give for a query.

    Returns:
        The documents, and an array of shape (queries, documents): the record's weight at its positive, 0 at
        negatives (its own and, unless it says otherwise, those of the others in the batch), -1 at documents that
        don't count for it, because they are another positive of the query.
    """
    documents: dict[str, int] = {}
    for record in records:
        for text in (record.pos[0], *record.neg[:negatives]):
            documents.setdefault(text, len(documents))
    keys = [normalise(text) for text in documents]
    relevance = np.zeros((len(records), len(documents)), np.float32)
    for row, record in enumerate(records):
        if not record.in_batch_negatives:
            relevance[row] = LEFT_OUT
            relevance[row, [documents[text] for text in record.neg[:negatives]]] = 0
        positives = {normalise(text) for text in record.pos}
        if known_positives is not None:
            positives |= known_positives.get(normalise(record.query), set())
        relevance[row, [column for column, key in enumerate(keys) if key in positives]] = LEFT_OUT
        relevance[row, documents[record.pos[0]]] = record.weight
    return list(documents), relevance


def _one_positive_each(record: Record) -> list[Record]:
    """A row for every positive, so that none goes unseen; the others of the query stay known."""
    return [
        Record(
            record.query,
            (positive, *(text for text in record.pos if text != positive)),
            record.neg,
            prompt=record.prompt,
            weight=record.weight,
            in_batch_negatives=record.in_batch_negatives,
        )
        for positive in dict.fromkeys(record.pos)
    ]


def training_rows(records: Sequence[Record]) -> list[Record]:
    """What is trained on: a row for every positive of every record of some weight."""
    return [row for record in records if record.weight > 0 for row in _one_positive_each(record)]
