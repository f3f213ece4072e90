"""InfoNCE and its relatives."""

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

    Returns:
        The loss, a scalar.
    """
    import torch

    similarities = queries @ documents.T  # (queries, documents)
    weights, positives = relevance.max(dim=1)
    rows = torch.arange(len(queries), device=queries.device)
    positive = similarities[rows, positives]
    too_similar = torch.inf if mask_margin is None else positive.detach() + mask_margin
    mine = torch.zeros_like(relevance, dtype=torch.bool)
    if own is not None:
        mine[rows[:, None].expand_as(own)[own >= 0], own[own >= 0]] = True
    found = documents[positives]  # (queries, dimensions): the positive of each query
    between = relevance[:, positives]  # (queries, queries): what the positive of query j is to query i
    foreign = (between == 0) & (between.T == 0)

    def part(direction: str) -> Tensor:
        """Similarities over the temperature, those that don't count at -inf; shape (queries, candidates)."""
        if direction == "query-document":
            values, allowed, kept = similarities, relevance >= 0, mine | (relevance > 0)
        elif direction == "query-query":
            values, allowed, kept = queries @ queries.T, foreign, torch.zeros_like(foreign)
        elif direction == "document-query":
            kept = torch.eye(len(queries), dtype=torch.bool, device=queries.device)
            values, allowed = found @ queries.T, foreign | kept
        else:
            values, allowed, kept = found @ documents.T, (relevance == 0) & ~mine, torch.zeros_like(mine)
        if mask_margin is not None:
            allowed = allowed & (kept | (values.detach() <= too_similar[:, None]))
        return (values / temperature).masked_fill(~allowed, -torch.inf)

    parts = [part(direction) for direction in directions]
    if partition == "joint":
        parts = [torch.cat(parts, dim=1)]
    partitions = torch.stack([one.logsumexp(dim=1) for one in parts]).mean(dim=0)
    target = positive / temperature
    if label_smoothing:
        target = (1 - label_smoothing) * target + label_smoothing * torch.stack([_mean(one) for one in parts]).mean(0)
    return ((partitions - target) * weights).sum() / weights.sum()


def _mean(values: Tensor) -> Tensor:
    """Mean over the candidates that count; shape (queries, candidates) to (queries,)."""
    import torch

    counts = values > -torch.inf
    return values.masked_fill(~counts, 0).sum(dim=1) / counts.sum(dim=1)
