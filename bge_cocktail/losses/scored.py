"""Losses of pairs with a score: similar pairs before less similar ones. The formulas are sentence-transformers'."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def cosent(queries: Tensor, documents: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """CoSENT: ``log(1 + sum exp((s_k - s_i) / t))`` over pairs i scored above pairs k.

    (Huang et al. 2024, doi:10.1109/TASLP.2024.3402087.)

    Args:
        queries: Unit-norm embeddings of one side, shape (pairs, dimensions).
        documents: Of the other, shape (pairs, dimensions).
        scores: Shape (pairs,); only their order counts.
        temperature: Divides similarities.
    """
    from sentence_transformers.losses import CoSENTLoss

    return _embedded(CoSENTLoss(None, scale=1 / temperature), queries, documents, scores)


def angle(queries: Tensor, documents: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """AnglE: CoSENT on the angle between embeddings read as complex numbers (Li and Li, arXiv:2309.12871).

    Args:
        queries: Embeddings of one side, shape (pairs, dimensions).
        documents: Of the other, shape (pairs, dimensions).
        scores: Shape (pairs,); only their order counts.
        temperature: Divides similarities.
    """
    from sentence_transformers.losses import AnglELoss

    return _embedded(AnglELoss(None, scale=1 / temperature), queries, documents, scores)


def _embedded(loss: object, queries: Tensor, documents: Tensor, scores: Tensor) -> Tensor:
    result: Tensor = loss.compute_loss_from_embeddings([queries, documents], scores)  # type: ignore[attr-defined]
    return result
