"""Finding texts that are the same, nearly the same, or mean the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import xxhash

from bge_cocktail.encoding import Encoder
from bge_cocktail.errors import UsageError
from bge_cocktail.options import Preparing
from bge_cocktail.progress import progress
from bge_cocktail.records import normalise
from bge_cocktail.registry import Registry
from bge_cocktail.search import top_k

Match = tuple[int, int, float]
"""Rows of an earlier and a later text, and how alike they are."""
Finder = Callable[[Sequence[str], Preparing, Encoder | None], Iterator[Match]]
duplicate_finders: Registry[Finder] = Registry("duplicate-finders")
PERMUTATIONS = 128
SHINGLE = 5
NEIGHBOURS = 16


@duplicate_finders("exact")
def exact(texts: Sequence[str], _options: Preparing, _encoder: Encoder | None) -> Iterator[Match]:
    """The same but for case, white space and Unicode composition."""
    first: dict[bytes, int] = {}
    for row, text in enumerate(texts):
        earlier = first.setdefault(text_key(text), row)
        if earlier != row:
            yield earlier, row, 1.0


@duplicate_finders("near")
def near(texts: Sequence[str], options: Preparing, _encoder: Encoder | None) -> Iterator[Match]:
    """Jaccard similarity of 5-character shingles (MinHash by datasketch; each find is then computed exactly).

    MinHash: Broder, On the resemblance and containment of documents (1997).
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=options.near_threshold, num_perm=PERMUTATIONS)
    shingled = (list(shingles(text)) for text in texts)
    hashes = MinHash.generator(shingled, num_perm=PERMUTATIONS, seed=1, hashfunc=xxhash.xxh32_intdigest)
    with progress("near-duplicates", len(texts)) as advance:
        for row, signature in enumerate(hashes):
            for earlier in sorted(index.query(signature)):
                similarity = jaccard(texts[earlier], texts[row])
                if similarity >= options.near_threshold:
                    yield earlier, row, similarity
            index.insert(row, signature, check_duplication=False)
            advance(1)


@duplicate_finders("semantic")
def semantic(texts: Sequence[str], options: Preparing, encoder: Encoder | None) -> Iterator[Match]:
    """Cosine of embeddings, among each text's 16 nearest."""
    if encoder is None:
        raise UsageError("semantic duplicates need an encoder: --model")
    embeddings = encoder.encode_text(texts)
    similarities, rows = top_k(embeddings, embeddings, NEIGHBOURS)
    for row in range(len(texts)):
        for similarity, other in zip(similarities[row].tolist(), rows[row].tolist(), strict=True):
            if other < row and similarity >= options.semantic_threshold:
                yield other, row, similarity


def find_duplicates(texts: Sequence[str], options: Preparing, encoder: Encoder | None) -> Iterator[tuple[str, Match]]:
    """Pairs of rows that any of the chosen finders takes for the same, with the finder's name.

    Texts that are exactly the same are compared once, so the slower finders see each text once.
    """
    distinct: dict[bytes, int] = {}
    for row, text in enumerate(texts):
        distinct.setdefault(text_key(text), row)
    rows = list(distinct.values())
    for name in options.duplicates:
        finder = duplicate_finders[name]
        if name == "exact":
            yield from ((name, match) for match in finder(texts, options, encoder))
        else:
            for one, other, similarity in finder([texts[row] for row in rows], options, encoder):
                yield name, (rows[one], rows[other], similarity)


def text_key(text: str) -> bytes:
    """16 bytes that are equal for texts that `normalise` makes equal."""
    return xxhash.xxh3_128_digest(normalise(text).encode("utf-8", "surrogatepass"))


def shingles(text: str) -> set[bytes]:
    """The sets of characters by which texts are compared: runs of 5, of shorter texts the whole."""
    text = " ".join("".join(char if char.isalnum() else " " for char in normalise(text)).split()) or text
    return {text[start : start + SHINGLE].encode() for start in range(max(1, len(text) - SHINGLE + 1))}


def jaccard(one: str, other: str) -> float:
    """Shingles in both texts over shingles in either."""
    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)


class Groups:
    """Union-find: what is joined, directly or through others, is one group; its smallest row names it."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count)

    def find(self, row: int) -> int:
        """The row that names the group of a row."""
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
