"""Train, dev and test, without one text in two of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from bge_cocktail.preparing.duplicates import Groups

SPLITS = ("train", "dev", "test")


def assign_splits(
    groups: Groups, keys: Sequence[bytes], strata: Sequence[str], *, ratio: Sequence[float], stratify: bool, seed: int
) -> NDArray[np.int8]:
    """A split for each example; examples of one group have the same.

    A group goes where the hash of its members' smallest key falls, so new data move no old group that they don't
    join, and one that they join only if they bring a smaller key. Stratified, the groups of each
    stratum are put in the order of that hash and cut at the ratio; then the few at the cuts may move.

    Args:
        groups: Which examples belong together.
        keys: What each example is hashed by.
        strata: The label or task of each example; a group has that of its first.
        ratio: Sizes of train, dev and test to each other.
        stratify: Cut each stratum by itself.
        seed: Goes into the hash.

    Returns:
        0, 1 or 2 for each example, shape (examples,).
    """
    roots = [groups.find(row) for row in range(len(keys))]
    smallest: dict[int, bytes] = {}
    members: dict[int, int] = {}
    for root, key in zip(roots, keys, strict=True):
        smallest[root] = min(smallest.get(root, key), key)
        members[root] = members.get(root, 0) + 1
    # hashed once more: the smallest of many keys is small, its hash is anything
    place = {root: xxhash.xxh3_64_intdigest(key, seed) / 2**64 for root, key in smallest.items()}
    cuts = np.cumsum(np.asarray(ratio, np.float64)) / sum(ratio)
    split_of: dict[int, int] = {}
    if stratify:
        by_stratum: dict[str, list[int]] = {}
        for root in place:
            by_stratum.setdefault(strata[root], []).append(root)
        for chosen in by_stratum.values():
            chosen.sort(key=lambda root: (place[root], root))
            sizes = np.array([members[root] for root in chosen], np.float64)
            middle = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
            split_of.update(zip(chosen, _part(middle, cuts), strict=True))
    else:
        roots_in_order = list(place)
        fractions = np.array([place[root] for root in roots_in_order], np.float64)
        split_of.update(zip(roots_in_order, _part(fractions, cuts), strict=True))
    return np.array([split_of[root] for root in roots], np.int8)


def _part(fractions: NDArray[np.float64], cuts: NDArray[np.float64]) -> list[int]:
    found: list[int] = np.minimum(np.searchsorted(cuts, fractions, side="right"), len(cuts) - 1).tolist()
    return found
