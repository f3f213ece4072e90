"""The losses: pure functions of embeddings, and what the documents of a batch are to its queries."""

from bge_cocktail.losses.batch import Targets, batch_relevance, batch_targets
from bge_cocktail.losses.contrastive import info_nce
from bge_cocktail.losses.distillation import kl_divergence, m3_distillation, margin_mse
from bge_cocktail.losses.scored import angle, cosent
from bge_cocktail.losses.total import Embedded, LossSettings, losses, total_loss

__all__ = [
    "Embedded",
    "LossSettings",
    "Targets",
    "angle",
    "batch_relevance",
    "batch_targets",
    "cosent",
    "info_nce",
    "kl_divergence",
    "losses",
    "m3_distillation",
    "margin_mse",
    "total_loss",
]
