"""Texts that are the same, nearly the same, or mean the same; and splits that share none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import regex
import xxhash
from numpy.typing import NDArray

from bge_cocktail.core.errors import UsageError
from bge_cocktail.core.progress import progress
from bge_cocktail.core.registry import Registry
from bge_cocktail.data.record import normalise, text_key
from bge_cocktail.models.encoder import Encoder
from bge_cocktail.options import PrepareOptions
from bge_cocktail.search.exact import top_k

Match = tuple[int, int, float]
"""Rows of an earlier and a later text, and how alike they are."""
Finder = Callable[[Sequence[str], PrepareOptions, Encoder | None, int | None], Iterator[Match]]
"""Texts in, pairs of rows out that are alike: as many as it takes to know which texts hang together. With a number of
known texts, the first ones: for each later text all known texts that are like it."""
duplicate_finders: Registry[Finder] = Registry("duplicate-finders")
PERMUTATIONS = 128
SHINGLE = 5
# marks belong to their letters: vowel signs tell Indic words apart
_BETWEEN = regex.compile(r"[^\p{L}\p{N}\p{M}]+")


NEIGHBOURS = 16


@duplicate_finders("exact")
def exact(
    texts: Sequence[str], _options: PrepareOptions, _encoder: Encoder | None, known: int | None
) -> Iterator[Match]:
    """The same but for case, white space and Unicode composition."""
    first: dict[bytes, int] = {}
    for row, text in enumerate(texts):
        key = text_key(text)
        earlier = first.get(key) if known is not None and row >= known else first.setdefault(key, row)
        if earlier is not None and earlier != row and (known is None or row >= known):
            yield earlier, row, 1.0


@duplicate_finders("near")
def near(texts: Sequence[str], options: PrepareOptions, _encoder: Encoder | None, known: int | None) -> Iterator[Match]:
    """Jaccard similarity of 5-character shingles (MinHash by datasketch; each find is then computed exactly).

    MinHash: Broder, On the resemblance and containment of documents (1997).
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=options.near_threshold, num_perm=PERMUTATIONS)
    shingled = [shingles(text) for text in texts]
    hashes = MinHash.generator(map(list, shingled), num_perm=PERMUTATIONS, seed=1, hashfunc=xxhash.xxh32_intdigest)
    groups = Groups(len(texts))
    with progress("near-duplicates", len(texts)) as advance:
        for row, signature in enumerate(hashes):
            asked = known is None or row >= known
            for earlier in sorted(index.query(signature)) if asked else ():
                # templates make thousands of like texts: who hangs together already needs no second look
                if known is None and groups.find(earlier) == groups.find(row):
                    continue
                similarity = _jaccard(shingled[earlier], shingled[row])
                if similarity >= options.near_threshold:
                    groups.join(earlier, row)
                    yield earlier, row, similarity
            if known is None or row < known:
                index.insert(row, signature, check_duplication=False)
            advance(1)


@duplicate_finders("semantic")
def semantic(
    texts: Sequence[str], options: PrepareOptions, encoder: Encoder | None, known: int | None
) -> Iterator[Match]:
    """Cosine of embeddings, among each text's 16 nearest."""
    if encoder is None:
        raise UsageError("semantic duplicates need an encoder: `model`")
    embeddings = encoder.encode_text(texts)
    start = known or 0
    similarities, rows = top_k(embeddings[start:], embeddings[:known], NEIGHBOURS)
    for row in range(start, len(texts)):
        for similarity, other in zip(similarities[row - start].tolist(), rows[row - start].tolist(), strict=True):
            if similarity >= options.semantic_threshold and other != row:
                yield min(other, row), max(other, row), similarity


def find_duplicates(
    texts: Sequence[str],
    names: Sequence[str],
    options: PrepareOptions,
    encoder: Encoder | None,
    known: int | None = None,
) -> Iterator[tuple[str, Match]]:
    """Pairs of rows that any of the finders takes for the same, with the finder's name.

    Slower finders see each text once: those that are exactly the same are compared by the first of them.

    Args:
        texts: All texts.
        names: Of the finders.
        options: Thresholds.
        encoder: For the semantic finder.
        known: Look only for which of the later texts are like one of the first so many.
    """
    for name in names:
        finder = duplicate_finders[name]
        if name == "exact":
            yield from ((name, match) for match in finder(texts, options, encoder, known))
            continue
        distinct: dict[tuple[bool, bytes], int] = {}
        for row, text in enumerate(texts):
            distinct.setdefault((known is not None and row >= known, text_key(text)), row)
        rows = list(distinct.values())
        split = None if known is None else sum(row < known for row in rows)
        for one, other, similarity in finder([texts[row] for row in rows], options, encoder, split):
            yield name, (rows[one], rows[other], similarity)


def shingles(text: str) -> set[bytes]:
    """Return the sets of characters by which texts are compared: runs of 5, of shorter texts the whole."""
    text = _BETWEEN.sub(" ", normalise(text)).strip() or text
    return {text[start : start + SHINGLE].encode() for start in range(max(1, len(text) - SHINGLE + 1))}


def jaccard(one: str, other: str) -> float:
    """Shingles in both texts over shingles in either."""
    return _jaccard(shingles(one), shingles(other))


def _jaccard(one: set[bytes], other: set[bytes]) -> float:
    return len(one & other) / len(one | other)


class Groups:
    """Union-find: what is joined, directly or through others, is one group; its smallest row names it."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count)

    def find(self, row: int) -> int:
        """Return the row that names the group of a row."""
        parent = self._parent
        root = row
        while parent[root] != root:
            root = int(parent[root])
        while parent[row] != root:
            parent[row], row = root, int(parent[row])
        return root

    def join(self, one: int, other: int) -> None:
        """Make the groups of two rows one."""
        first, second = self.find(one), self.find(other)
        if first != second:
            self._parent[max(first, second)] = min(first, second)


def assign_splits(
    groups: Groups, keys: Sequence[bytes], strata: Sequence[str], *, ratio: Sequence[float], stratify: bool, seed: int
) -> NDArray[np.int8]:
    """Return a split for each example; examples of one group have the same.

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
    parts: list[int] = np.minimum(np.searchsorted(cuts, fractions, side="right"), len(cuts) - 1).tolist()
    return parts
