"""Why a candidate is no hard negative: each reason a function over all candidates of a block of records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.options import Mining
from bge_cocktail.registry import Registry

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Block:
    """The candidates of a block of records.

    Attributes:
        ranks: From 1, shape (records, width).
        similarities: Of query and candidate, by the main encoder, shape (records, width).
        lowest: The similarity of each query to the least similar of its positives, shape (records,).
        to_positive: The similarity of each candidate to the most similar positive, shape (records, width); None
            unless asked for.
        positive: Candidates that are known positives of the query, shape (records, width).
        query: Candidates that are the query's own text, shape (records, width).
        taken: Candidates that are negatives of the record already, shape (records, width).
    """

    ranks: NDArray[np.int64]
    similarities: NDArray[np.float32]
    lowest: NDArray[np.float64]
    to_positive: NDArray[np.float32] | None
    positive: Mask
    query: Mask
    taken: Mask


Filter = Callable[[Block, Mining], Mask | None]
"""A block in; what it excludes, shape (records, width), or None if the options don't ask for it."""
negative_filters: Registry[Filter] = Registry("negative-filters")


@negative_filters("known positive of the query", order=0)
def known_positive(block: Block, _options: Mining) -> Mask:
    """A positive of the query in any record that asks the same, however spaced or cased."""
    return block.positive


@negative_filters("the query itself", order=1)
def own_query(block: Block, _options: Mining) -> Mask:
    """The query's own text."""
    return block.query


@negative_filters("negative of the record already", order=2)
def already_negative(block: Block, _options: Mining) -> Mask:
    """A negative that the record brought along."""
    return block.taken


@negative_filters("within the skipped ranks", order=3)
def skipped(block: Block, options: Mining) -> Mask | None:
    """A rank of at most `skip` in any source."""
    return block.ranks <= options.skip if options.skip else None


@negative_filters("above the relative margin", order=4)
def relative_margin(block: Block, options: Mining) -> Mask | None:
    """More similar than (1 - margin) of the lowest positive (NV-Retriever's TopK-PercPos, arXiv:2407.15831)."""
    if options.relative_margin is None:
        return None
    # a similarity below zero has no meaningful share: the margin then goes the other way, hence abs()
    limit = block.lowest - options.relative_margin * np.abs(block.lowest)
    return block.similarities > limit[:, None]


@negative_filters("above the absolute margin", order=5)
def absolute_margin(block: Block, options: Mining) -> Mask | None:
    """More similar than the lowest positive minus the margin (NV-Retriever's TopK-MarginPos)."""
    if options.absolute_margin is None:
        return None
    return block.similarities > (block.lowest - options.absolute_margin)[:, None]


@negative_filters("above the highest similarity", order=6)
def highest(block: Block, options: Mining) -> Mask | None:
    """More similar than max_similarity (NV-Retriever's TopK-Abs)."""
    return None if options.max_similarity is None else block.similarities > options.max_similarity


@negative_filters("below the lowest similarity", order=7)
def lowest(block: Block, options: Mining) -> Mask | None:
    """Less similar than min_similarity: too easy to teach anything."""
    return None if options.min_similarity is None else block.similarities < options.min_similarity


@negative_filters("near-duplicate of a positive", order=8)
def near_positive(block: Block, options: Mining) -> Mask | None:
    """As similar to a positive as duplicate_similarity, so most likely relevant too."""
    if options.duplicate_similarity is None or block.to_positive is None:
        return None
    return block.to_positive >= options.duplicate_similarity


def filters_in_order() -> list[tuple[str, Filter]]:
    """All filters: a candidate is counted under the first that excludes it; plugins' come last."""
    return sorted(negative_filters.items(), key=lambda item: (negative_filters.trait(item[0], "order", 99), item[0]))
