"""What the documents of a batch are to its queries; the losses by name, and their sum over a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.registry import Registry
from bge_cocktail.data.record import Record, normalise
from bge_cocktail.losses.contrastive import angle, cosent, info_nce, kl_divergence, m3_distillation, margin_mse

if TYPE_CHECKING:
    from torch import Tensor

LEFT_OUT = -1.0
# that are in memory at once, a gigabyte with their gradients
_SIMILARITIES = 1 << 26


@dataclass(frozen=True, slots=True)
class Targets:
    """What the documents of a batch are to its queries.

    Attributes:
        documents: The documents, each once.
        relevance: Shape (queries, documents): the record's weight at its positive, 0 at negatives, -1 at documents
            that don't count for the query.
        own: Shape (queries, group): columns of each record's positive, then of its own negatives; -1 fills up.
        scores: Shape (queries, group): the teacher's scores of those; NaN where it gave none.
    """

    documents: list[str]
    relevance: NDArray[np.float32]
    own: NDArray[np.int64]
    scores: NDArray[np.float32]


def batch_targets(
    records: Sequence[Record],
    *,
    negatives: int,
    known_positives: Mapping[str, set[str]] | None = None,
    in_batch_negatives: bool = True,
    blocks: int = 1,
) -> Targets:
    """Return the documents of a batch, each once, and what each is to each query.

    Args:
        records: The batch; the first positive of each is the one to find.
        negatives: Hard negatives taken of each record, the first ones.
        known_positives: From `positives_by_query`, to know positives that other records give for a query.
        in_batch_negatives: Whether the documents of other records are negatives; a record's own word comes first.
        blocks: Parts of the batch, one for each process, that don't see each other's documents.
    """
    groups = [_own_documents(record, negatives) for record in records]
    documents: dict[str, int] = {}
    for text in (text for group in groups for text in group):
        documents.setdefault(text, len(documents))
    keys: dict[str, list[int]] = {}
    for column, text in enumerate(documents):
        keys.setdefault(normalise(text), []).append(column)
    relevance = np.zeros((len(records), len(documents)), np.float32)
    own = np.full((len(records), max(map(len, groups), default=0)), -1, np.int64)
    scores = np.full(own.shape, np.nan, np.float32)
    for row, (record, group) in enumerate(zip(records, groups, strict=True)):
        mine = [documents[text] for text in group]
        own[row, : len(mine)] = mine
        scores[row, : len(mine)] = list(group.values())
        if not (record.in_batch_negatives and in_batch_negatives):
            relevance[row] = LEFT_OUT
            relevance[row, mine[1:]] = 0
        positives = {normalise(text) for text in record.pos}
        if known_positives is not None:
            positives |= known_positives.get(normalise(record.query), set())
        # in an order of its own, for sets have none that repeats
        relevance[row, sorted(column for key in positives for column in keys.get(key, ()))] = LEFT_OUT
        relevance[row, mine[0]] = record.weight
    if blocks > 1:
        _separate(relevance, own, blocks)
    return Targets(list(documents), relevance, own, scores)


def _own_documents(record: Record, negatives: int) -> dict[str, float]:
    """Return the positive, then the negatives, each text once; with the teacher's scores, or NaN."""
    scores = record.neg_scores or (np.nan,) * len(record.neg)
    group = {record.pos[0]: record.pos_scores[0] if record.pos_scores else np.nan}
    for text, score in zip(record.neg[:negatives], scores[:negatives], strict=True):
        group.setdefault(text, score)
    return group


def _separate(relevance: NDArray[np.float32], own: NDArray[np.int64], blocks: int) -> None:
    """Leave out, for each part of the batch, the documents that only other parts hold."""
    for rows in np.array_split(np.arange(len(own)), blocks):
        foreign = np.ones(relevance.shape[1], bool)
        foreign[own[rows][own[rows] >= 0]] = False
        relevance[np.ix_(rows, np.flatnonzero(foreign))] = LEFT_OUT


def batch_relevance(
    records: Sequence[Record], *, negatives: int, known_positives: Mapping[str, set[str]] | None = None
) -> tuple[list[str], NDArray[np.float32]]:
    """Return the documents and the relevance of `batch_targets`."""
    targets = batch_targets(records, negatives=negatives, known_positives=known_positives)
    return targets.documents, targets.relevance


@dataclass(frozen=True, slots=True)
class Embedded:
    """A batch when it is embedded; tensors on one device.

    Attributes:
        queries: Shape (queries, dimensions).
        documents: Shape (documents, dimensions).
        relevance: Shape (queries, documents); see `Targets`.
        own: Shape (queries, group).
        scores: Shape (queries, group).
    """

    queries: Tensor
    documents: Tensor
    relevance: Tensor
    own: Tensor
    scores: Tensor

    def weights(self) -> Tensor:
        """Of the records, shape (queries,)."""
        return self.relevance.max(dim=1).values

    def similarities(self, temperature: float) -> Tensor:
        """Of each query to its own documents, over the temperature, shape (queries, group); -inf fills up."""
        import torch

        everything = self.queries @ self.documents.T / temperature
        return everything.gather(1, self.own.clamp(min=0)).masked_fill(self.own < 0, -torch.inf)

    def first(self, dimensions: int) -> Embedded:
        """Return the first dimensions only, of unit norm again."""
        import torch

        normalize = torch.nn.functional.normalize
        queries, documents = self.queries[:, :dimensions], self.documents[:, :dimensions]
        return Embedded(normalize(queries, dim=1), normalize(documents, dim=1), self.relevance, self.own, self.scores)


@dataclass(frozen=True, slots=True)
class LossSettings:
    """How the losses of a batch are taken; see the options of training with the same names."""

    loss: Sequence[str] = ("info-nce",)
    loss_weights: Sequence[float] = ()
    temperature: float = 0.05
    directions: Sequence[str] = ("query-document",)
    partition: str = "joint"
    mask_margin: float | None = None
    label_smoothing: float = 0.0
    teacher_temperature: float = 1.0
    matryoshka: Sequence[int] = ()


Loss = Callable[[Embedded, LossSettings], "Tensor"]
losses: Registry[Loss] = Registry("losses")


def total_loss(batch: Embedded, settings: LossSettings) -> dict[str, Tensor]:
    """Return each loss of a batch by its weight; their sum is what is trained on.

    With `matryoshka`, each is the mean over the full embeddings and their first dimensions (Kusupati et al.,
    arXiv:2205.13147).
    """
    weights = settings.loss_weights or [1.0] * len(settings.loss)
    sizes = [batch, *(batch.first(dimensions) for dimensions in settings.matryoshka)]
    return {
        name: weight * sum(losses[name](size, settings) for size in sizes) / len(sizes)
        for name, weight in zip(settings.loss, weights, strict=True)
    }


@losses("info-nce", needs="positives")
def _info_nce(batch: Embedded, settings: LossSettings) -> Tensor:
    """InfoNCE over in-batch and hard negatives (arXiv:1807.03748), in more directions too (GTE, arXiv:2308.03281)."""
    return info_nce(
        batch.queries,
        batch.documents,
        batch.relevance,
        settings.temperature,
        own=batch.own,
        directions=settings.directions,
        partition=settings.partition,
        mask_margin=settings.mask_margin,
        label_smoothing=settings.label_smoothing,
        at_once=max(1, _SIMILARITIES // max(1, len(batch.documents))),
    )


@losses("kl", needs="teacher")
def _kl(batch: Embedded, settings: LossSettings) -> Tensor:
    """Divergence from a teacher's distribution over each query's own documents (arXiv:1503.02531)."""
    similarities = batch.similarities(settings.temperature)
    return kl_divergence(similarities, batch.scores, batch.weights(), settings.teacher_temperature)


@losses("m3", needs="teacher")
def _m3(batch: Embedded, settings: LossSettings) -> Tensor:
    """A teacher's scores weigh each own document as the positive among the batch's (M3-Embedding, arXiv:2402.03216)."""
    import torch

    # a teacher has judged the own documents: they count, also those that are left out elsewhere
    mine = torch.zeros_like(batch.relevance, dtype=torch.bool)
    rows, places = (batch.own >= 0).nonzero(as_tuple=True)
    mine[rows, batch.own[rows, places]] = True
    everything = batch.queries @ batch.documents.T / settings.temperature
    everything = everything.masked_fill((batch.relevance < 0) & ~mine, -torch.inf)
    similarities = batch.similarities(settings.temperature)
    return m3_distillation(
        similarities, everything, batch.own, batch.scores, batch.weights(), settings.teacher_temperature
    )


@losses("margin-mse", needs="teacher")
def _margin_mse(batch: Embedded, settings: LossSettings) -> Tensor:
    """A teacher's margins between positive and negatives, squared differences (arXiv:2010.02666)."""
    return margin_mse(batch.similarities(settings.temperature), batch.scores, batch.weights())


@losses("cosent", needs="scores")
def _cosent(batch: Embedded, settings: LossSettings) -> Tensor:
    """Pairs with scores: the higher scored more similar, by cosine (doi:10.1109/TASLP.2024.3402087)."""
    return cosent(*_pairs(batch), settings.temperature)


@losses("angle", needs="scores")
def _angle(batch: Embedded, settings: LossSettings) -> Tensor:
    """Pairs with scores: the higher scored more similar, by angle (AnglE, arXiv:2309.12871)."""
    return angle(*_pairs(batch), settings.temperature)


def _pairs(batch: Embedded) -> tuple[Tensor, Tensor, Tensor]:
    """Return every query with every own document that has a score: shapes (pairs, dimensions) twice, (pairs,)."""
    rows, places = (~batch.scores.isnan()).nonzero(as_tuple=True)
    return batch.queries[rows], batch.documents[batch.own[rows, places]], batch.scores[rows, places]
