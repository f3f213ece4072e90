"""The losses by name, and their sum over a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bge_cocktail.losses.contrastive import info_nce
from bge_cocktail.losses.distillation import kl_divergence, m3_distillation, margin_mse
from bge_cocktail.losses.scored import angle, cosent
from bge_cocktail.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


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
        """The first dimensions only, of unit norm again."""
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
    """Each loss of a batch by its weight; their sum is what is trained on.

    With `matryoshka`, each is the mean over the full embeddings and their first dimensions (Kusupati et al.,
    arXiv:2205.13147).
    """
    weights = settings.loss_weights or [1.0] * len(settings.loss)
    sizes = [batch, *(batch.first(dimensions) for dimensions in settings.matryoshka)]
    return {
        name: weight * sum(losses[name](one, settings) for one in sizes) / len(sizes)
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
    """Every query with every own document that has a score: shapes (pairs, dimensions) twice, (pairs,)."""
    rows, places = (~batch.scores.isnan()).nonzero(as_tuple=True)
    return batch.queries[rows], batch.documents[batch.own[rows, places]], batch.scores[rows, places]
