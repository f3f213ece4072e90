"""InfoNCE, learning from a teacher's scores, pairs with scores: pure functions of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

DIRECTIONS = ("query-document", "query-query", "document-query", "document-document")


def info_nce(
    queries: Tensor,
    documents: Tensor,
    relevance: Tensor,
    temperature: float,
    *,
    own: Tensor | None = None,
    directions: Sequence[str] = DIRECTIONS[:1],
    partition: str = "joint",
    mask_margin: float | None = None,
    label_smoothing: float = 0.0,
    at_once: int | None = None,
) -> Tensor:
    """InfoNCE over in-batch and hard negatives (van den Oord et al., arXiv:1807.03748).

    For query i with positive p: ``-log(exp(s_ip / t) / Z_i)``, where Z_i sums ``exp(s / t)`` over the positive and
    the negatives; the mean over the queries, by weight. More directions add to Z_i the other queries, the positive
    against the other queries, and the positive against the other records' documents (GTE, arXiv:2308.03281, equation
    4); a `partition` of ``apart`` takes a Z_i for each direction and the mean of their logarithms (symmetric InfoNCE).

    Args:
        queries: Unit-norm embeddings, shape (queries, dimensions).
        documents: Unit-norm embeddings, shape (documents, dimensions).
        relevance: Shape (queries, documents), as `batch_targets` makes it.
        temperature: Divides similarities.
        own: Shape (queries, group), as `batch_targets` makes it; what `mask_margin` and document-document need.
        directions: Which similarities count, of `DIRECTIONS`.
        partition: ``joint`` or ``apart``.
        mask_margin: In-batch negatives more similar than the positive by this much are taken for false negatives and
            left out, as are queries and documents in the other directions (Qwen3-Embedding, arXiv:2506.05176).
        label_smoothing: Share of the target that is spread evenly over the candidates of a query.
        at_once: Queries whose similarities are in memory at once; all without it.

    Returns:
        The loss, a scalar.
    """
    import torch

    weights, positives = relevance.max(dim=1)
    positive_documents = documents[positives]  # (queries, dimensions): the positive of each query

    def losses_of(first: int, last: int) -> Tensor:
        """Return the losses of some of the queries, times their weights; shape (last - first,)."""
        asked, known, own_positives = queries[first:last], relevance[first:last], positives[first:last]
        similarities = asked @ documents.T  # (queries, documents)
        rows = torch.arange(len(asked), device=queries.device)
        positive = similarities[rows, own_positives]
        too_similar = torch.inf if mask_margin is None else positive.detach() + mask_margin
        mine = torch.zeros_like(known, dtype=torch.bool)
        if own is not None:
            columns = own[first:last]
            mine[rows[:, None].expand_as(columns)[columns >= 0], columns[columns >= 0]] = True
        # (queries, queries): neither is the positive of one anything to the other
        foreign = (known[:, positives] == 0) & (relevance[:, own_positives].T == 0)

        def part(direction: str) -> Tensor:
            """Similarities over the temperature, those that don't count at -inf; shape (queries, candidates)."""
            if direction == "query-document":
                values, allowed, kept = similarities, known >= 0, mine | (known > 0)
            elif direction == "query-query":
                values, allowed, kept = asked @ queries.T, foreign, torch.zeros_like(foreign)
            elif direction == "document-query":
                kept = torch.zeros_like(foreign)
                kept[rows, rows + first] = True
                values, allowed = positive_documents[first:last] @ queries.T, foreign | kept
            else:
                values = positive_documents[first:last] @ documents.T
                allowed, kept = (known == 0) & ~mine, torch.zeros_like(mine)
            if mask_margin is not None:
                allowed = allowed & (kept | (values.detach() <= too_similar[:, None]))
            return (values / temperature).masked_fill(~allowed, -torch.inf)

        parts = [part(direction) for direction in directions]
        if partition == "joint":
            parts = [torch.cat(parts, dim=1)]
        partitions = torch.stack([part.logsumexp(dim=1) for part in parts]).mean(dim=0)
        target = positive / temperature
        if label_smoothing:
            spread = torch.stack([_mean(part) for part in parts]).mean(0)
            target = (1 - label_smoothing) * target + label_smoothing * spread
        return (partitions - target) * weights[first:last]

    if at_once is None or len(queries) <= at_once:
        return losses_of(0, len(queries)).sum() / weights.sum()
    from torch.utils.checkpoint import checkpoint

    # of a large batch, similarities are computed again in the backward pass, so that few are in memory at once
    blocks = [
        checkpoint(losses_of, first, min(first + at_once, len(queries)), use_reentrant=False)
        for first in range(0, len(queries), at_once)
    ]
    return torch.cat(blocks).sum() / weights.sum()


def _mean(values: Tensor) -> Tensor:
    """Mean over the candidates that count; shape (queries, candidates) to (queries,)."""
    import torch

    counts = values > -torch.inf
    return values.masked_fill(~counts, 0).sum(dim=1) / counts.sum(dim=1)


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
    return _weighted_mean(each, weights[rows], similarities)


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
    return _weighted_mean(each, weights[rows], similarities)


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
    return _weighted_mean(squares[there], each, similarities)


def _teacher(similarities: Tensor, scores: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Rows with scores for two own documents or more, and for all; and the teacher's distributions over them."""
    import torch

    there = similarities > -torch.inf
    complete = (~there | ~scores.isnan()).all(dim=1) & (there.sum(dim=1) > 1)
    rows = complete.nonzero()[:, 0]
    return rows, (scores[rows] / temperature).masked_fill(~there[rows], -torch.inf).softmax(dim=1)


def _weighted_mean(each: Tensor, weights: Tensor, similarities: Tensor) -> Tensor:
    """By weight; without any, a zero that hangs on the similarities, so that it can be gone back from."""
    if not len(each):
        return similarities[:, 0].sum() * 0
    return (each * weights).sum() / weights.sum()


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
