"""Learning from a teacher's scores of each query's own documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def kl_divergence(similarities: Tensor, scores: Tensor, weights: Tensor, teacher_temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of the student's distribution from the teacher's, over each query's own documents.

    ``sum_j T_j (log T_j - log S_j)`` with ``T = softmax(scores / teacher_temperature)``, ``S = softmax(similarities)``
    (Hinton et al., arXiv:1503.02531). FlagEmbedding's ``kl_div`` leaves the teacher's entropy away, which has no
    gradient.

    Args:
        similarities: Over the temperature, shape (queries, group); -inf where a query has fewer documents.
        scores: The teacher's, shape (queries, group); NaN where it gave none.
        weights: Of the records, shape (queries,).
        teacher_temperature: Divides the teacher's scores.

    Returns:
        The mean over the queries with scores for all of their documents, by weight; 0 without such queries.
    """
    import torch

    rows, teacher = _teacher(similarities, scores, teacher_temperature)
    student = similarities[rows].log_softmax(dim=1)
    there = teacher > 0
    logs = teacher.clamp(min=torch.finfo(teacher.dtype).tiny).log()
    each = (teacher * (logs - student.masked_fill(~there, 0))).sum(dim=1)
    return _mean(each, weights[rows], similarities)


def m3_distillation(
    similarities: Tensor, everything: Tensor, own: Tensor, scores: Tensor, weights: Tensor, temperature: float = 1.0
) -> Tensor:
    """M3-Embedding's self-distillation (arXiv:2402.03216) in the form that FlagEmbedding trains with.

    Each of a query's own documents in turn is the positive among all documents of the batch, those that had their
    turn left out; its cross entropy counts by the teacher's softmax.

    Args:
        similarities: Over the temperature, shape (queries, group); -inf where a query has fewer documents.
        everything: Over the temperature, shape (queries, documents); -inf at documents that don't count.
        own: Columns of the own documents in `everything`, shape (queries, group); -1 fills up.
        scores: The teacher's, shape (queries, group); NaN where it gave none.
        weights: Of the records, shape (queries,).
        temperature: Divides the teacher's scores.

    Returns:
        The mean over the queries with scores for all of their documents, by weight; 0 without such queries.
    """
    import torch

    rows, teacher = _teacher(similarities, scores, temperature)
    columns, candidates = own[rows], everything[rows]
    each = torch.zeros(len(rows), dtype=similarities.dtype, device=similarities.device)
    for place in range(own.shape[1]):
        there = columns[:, place] >= 0
        target = columns[there, place]
        now = candidates[there]
        loss = torch.nn.functional.cross_entropy(now, target, reduction="none")
        each = each.index_add(0, there.nonzero()[:, 0], teacher[there, place] * loss)
        candidates = candidates.scatter(1, columns[:, place, None].clamp(min=0), -torch.inf).where(
            there[:, None], candidates
        )
    return _mean(each, weights[rows], similarities)


def margin_mse(similarities: Tensor, scores: Tensor, weights: Tensor) -> Tensor:
    """Squared difference of margins between positive and negative (Hofstätter et al., arXiv:2010.02666).

    Args:
        similarities: Over the temperature, shape (queries, group), the positive first; -inf fills up.
        scores: The teacher's, shape (queries, group); NaN where it gave none.
        weights: Of the records, shape (queries,).

    Returns:
        The mean over all pairs of positive and scored negative, by weight; 0 without such pairs.
    """
    there = (scores[:, 1:] == scores[:, 1:]) & (scores[:, :1] == scores[:, :1])  # neither is NaN
    student = similarities[:, :1] - similarities[:, 1:].masked_fill(~there, 0)
    teacher = (scores[:, :1] - scores[:, 1:]).masked_fill(~there, 0)
    squares = (student - teacher).square()
    each = weights[:, None].expand_as(squares)[there]
    return _mean(squares[there], each, similarities)


def _teacher(similarities: Tensor, scores: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Rows with scores for two own documents or more, and for all; and the teacher's distributions over them."""
    import torch

    there = similarities > -torch.inf
    complete = (~there | ~scores.isnan()).all(dim=1) & (there.sum(dim=1) > 1)
    rows = complete.nonzero()[:, 0]
    return rows, (scores[rows] / temperature).masked_fill(~there[rows], -torch.inf).softmax(dim=1)


def _mean(each: Tensor, weights: Tensor, similarities: Tensor) -> Tensor:
    """By weight; without any, a zero that hangs on the similarities, so that it can be gone back from."""
    if not len(each):
        return similarities[:, 0].sum() * 0
    return (each * weights).sum() / weights.sum()
