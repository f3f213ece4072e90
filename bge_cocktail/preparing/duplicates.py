"""Finding texts that are the same, nearly the same, or mean the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import regex
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
Finder = Callable[[Sequence[str], Preparing, Encoder | None, int | None], Iterator[Match]]
"""Texts in, pairs of rows out that are alike: as many as it takes to know which texts hang together. With a number of
known texts, the first ones: for each later text all known texts that are like it."""
duplicate_finders: Registry[Finder] = Registry("duplicate-finders")
PERMUTATIONS = 128
SHINGLE = 5
# marks belong to their letters: vowel signs tell Indic words apart
_BETWEEN = regex.compile(r"[^\p{L}\p{N}\p{M}]+")
NEIGHBOURS = 16


@duplicate_finders("exact")
def exact(texts: Sequence[str], _options: Preparing, _encoder: Encoder | None, known: int | None) -> Iterator[Match]:
    """The same but for case, white space and Unicode composition."""
    first: dict[bytes, int] = {}
    for row, text in enumerate(texts):
        key = text_key(text)
        earlier = first.get(key) if known is not None and row >= known else first.setdefault(key, row)
        if earlier is not None and earlier != row and (known is None or row >= known):
            yield earlier, row, 1.0


@duplicate_finders("near")
def near(texts: Sequence[str], options: Preparing, _encoder: Encoder | None, known: int | None) -> Iterator[Match]:
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
def semantic(texts: Sequence[str], options: Preparing, encoder: Encoder | None, known: int | None) -> Iterator[Match]:
    """Cosine of embeddings, among each text's 16 nearest."""
    if encoder is None:
        raise UsageError("semantic duplicates need an encoder: --model")
    embeddings = encoder.encode_text(texts)
    start = known or 0
    similarities, rows = top_k(embeddings[start:], embeddings[:known], NEIGHBOURS)
    for row in range(start, len(texts)):
        for similarity, other in zip(similarities[row - start].tolist(), rows[row - start].tolist(), strict=True):
            if similarity >= options.semantic_threshold and other != row:
                yield min(other, row), max(other, row), similarity


def find_duplicates(
    texts: Sequence[str], names: Sequence[str], options: Preparing, encoder: Encoder | None, known: int | None = None
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


def text_key(text: str) -> bytes:
    """16 bytes that are equal for texts that `normalise` makes equal."""
    return xxhash.xxh3_128_digest(normalise(text).encode("utf-8", "surrogatepass"))


def shingles(text: str) -> set[bytes]:
    """The sets of characters by which texts are compared: runs of 5, of shorter texts the whole."""
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
