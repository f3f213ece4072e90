"""What leaves written queries out: each says which of them stay, and each is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import regex
from numpy.typing import NDArray

from bge_cocktail.core.errors import UsageError
from bge_cocktail.core.registry import Registry
from bge_cocktail.data.record import text_key
from bge_cocktail.evaluating.tasks.retrieval import fused
from bge_cocktail.models.encoder import Encoder
from bge_cocktail.models.reranker import Reranker
from bge_cocktail.options import PrepareOptions, SynthesizeOptions
from bge_cocktail.preparing.duplicates import Groups, find_duplicates
from bge_cocktail.search.bm25 import UNSPACED, search_words, top_by_words
from bge_cocktail.search.exact import top_k
from bge_cocktail.synthesizing.passages import Passage
from bge_cocktail.synthesizing.writers import WrittenQuery

Mask = NDArray[np.bool_]
# of what is found for a query, as deep as ranks are joined
_DEPTH = 100


@dataclass
class Corpus:
    """The passages, embedded once for all that ask.

    Attributes:
        passages: All of them.
        encoder: Embeds them and queries.
        reranker: Scores pairs of query and passage, if there is one.
    """

    passages: Sequence[Passage]
    encoder: Encoder
    reranker: Reranker | None = None
    _found: dict[str, list[int]] = field(default_factory=dict, repr=False)

    @cached_property
    def texts(self) -> list[str]:
        """Title and text of each passage."""
        return [passage.whole for passage in self.passages]

    def find(self, queries: Sequence[str], k: int) -> list[list[int]]:
        """Return the rows of the first k passages for each query, by embeddings and BM25, joined by reciprocal rank."""
        new = [query for query in dict.fromkeys(queries) if query not in self._found]
        if new:
            depth = min(_DEPTH, len(self.passages))
            _, near = top_k(self.encoder.encode_query(new), self.encoder.encode_document(self.texts), depth)
            by_words = top_by_words(new, self.texts, depth)
            runs = [
                {
                    str(row): {str(one): float(-place) for place, one in enumerate(rows) if one >= 0}
                    for row, rows in given
                }
                for given in (enumerate(near.tolist()), enumerate(by_words.rows.tolist()))
            ]
            joined = fused(runs, depth)
            self._found |= {query: [int(row) for row in joined[str(place)]] for place, query in enumerate(new)}
        return [self._found[query][:k] for query in queries]


Filter = Callable[[Sequence[WrittenQuery], Corpus, SynthesizeOptions], Mask | None]
"""Returns which queries stay; None where it has nothing to go by."""

query_filters: Registry[Filter] = Registry("query-filters")


def filter_queries(
    queries: Sequence[WrittenQuery], corpus: Corpus, options: SynthesizeOptions
) -> tuple[list[WrittenQuery], dict[str, Counter[str]]]:
    """Return the queries that all filters let through, and for each filter how many of each writer's it left out."""
    left_out: dict[str, Counter[str]] = {}
    kept = list(queries)
    for name in options.filters:
        stay = query_filters[name](kept, corpus, options)
        if stay is None:
            continue
        left_out[name] = Counter(query.writer for query, stays in zip(kept, stay.tolist(), strict=True) if not stays)
        kept = [query for query, stays in zip(kept, stay.tolist(), strict=True) if stays]
    return kept, left_out


@query_filters("short")
def is_long_enough(queries: Sequence[WrittenQuery], _corpus: Corpus, options: SynthesizeOptions) -> Mask:
    """Fewer words than asked for (of Chinese and the like, pairs of characters)."""
    return np.array([len(search_words(query.text)) >= options.min_words for query in queries], bool)


@query_filters("repeated")
def is_asked_once(queries: Sequence[WrittenQuery], _corpus: Corpus, _options: SynthesizeOptions) -> Mask:
    """Asked of several passages, none of which is then the answer alone; of one passage, asked again."""
    passages: dict[bytes, set[int]] = {}
    for query in queries:
        passages.setdefault(text_key(query.text), set()).add(query.passage)
    seen: set[bytes] = set()
    stay = []
    for query in queries:
        key = text_key(query.text)
        stay.append(len(passages[key]) == 1 and key not in seen)
        seen.add(key)
    return np.array(stay, bool)


@query_filters("near")
def is_unlike_others(queries: Sequence[WrittenQuery], _corpus: Corpus, options: SynthesizeOptions) -> Mask:
    """Nearly the same as an earlier query (MinHash)."""
    preparing = PrepareOptions(duplicates=["near"], near_threshold=options.near_threshold)
    groups = Groups(len(queries))
    for _, (one, other, _) in find_duplicates([query.text for query in queries], ["near"], preparing, None):
        groups.join(one, other)
    return np.array([groups.find(row) == row for row in range(len(queries))], bool)


_LETTER = regex.compile(r"\p{L}")
_UNSPACED = regex.compile(rf"[{UNSPACED}]")


@query_filters("language")
def is_in_its_language(queries: Sequence[WrittenQuery], corpus: Corpus, _options: SynthesizeOptions) -> Mask:
    """In another script than its passage."""

    def is_unspaced(text: str) -> bool:
        return 2 * len(_UNSPACED.findall(text)) > len(_LETTER.findall(text))

    return np.array([is_unspaced(query.text) == is_unspaced(corpus.texts[query.passage]) for query in queries], bool)


@query_filters("copied")
def is_not_copied(queries: Sequence[WrittenQuery], corpus: Corpus, options: SynthesizeOptions) -> Mask:
    """Mostly a run of words of what answers it, of five or more: found by its letters, it teaches nothing."""
    stay = []
    for query in queries:
        words = search_words(query.text)
        answer = search_words(query.positive or corpus.texts[query.passage])
        run = _longest_run(words, answer)
        stay.append(run < 5 or run <= options.max_copied * len(words))
    return np.array(stay, bool)


@query_filters("found")
def is_found(queries: Sequence[WrittenQuery], corpus: Corpus, options: SynthesizeOptions) -> Mask:
    """Its passage isn't among the first that embeddings and BM25 together find for it (the round trip)."""
    found = corpus.find([query.text for query in queries], options.found_in)
    return np.array([query.passage in rows for query, rows in zip(queries, found, strict=True)], bool)


@query_filters("answered")
def is_answered(queries: Sequence[WrittenQuery], corpus: Corpus, options: SynthesizeOptions) -> Mask | None:
    """A reranker puts other passages of those found before its own (with `reranker`)."""
    if corpus.reranker is None:
        return None
    found = corpus.find([query.text for query in queries], options.found_in)
    pairs = [
        (query.text, corpus.texts[row])
        for query, rows in zip(queries, found, strict=True)
        for row in dict.fromkeys([query.passage, *rows])
    ]
    scores = iter(np.asarray(corpus.reranker(pairs), np.float64).tolist())
    stay = []
    for query, rows in zip(queries, found, strict=True):
        own, *others = [next(scores) for _ in dict.fromkeys([query.passage, *rows])]
        stay.append(sum(other > own for other in others) < options.reranker_rank)
    return np.array(stay, bool)


def check_filters(options: SynthesizeOptions) -> None:
    """Raise what would be raised after minutes of writing.

    Raises:
        UsageError: A name that isn't there, or a reranker that no filter asks.
    """
    for name in options.filters:
        query_filters[name]
    if options.reranker and "answered" not in options.filters:
        raise UsageError("`reranker` does nothing without 'answered' among the `filters`")


def _longest_run(words: Sequence[str], text: Sequence[str]) -> int:
    """Return the length of the longest run of words that stands in a text."""
    best = 0
    starts: dict[str, list[int]] = {}
    for place, word in enumerate(text):
        starts.setdefault(word, []).append(place)
    for begin in range(len(words)):
        if len(words) - begin <= best:
            break
        for place in starts.get(words[begin], ()):
            length = 0
            while (
                begin + length < len(words)
                and place + length < len(text)
                and words[begin + length] == text[place + length]
            ):
                length += 1
            best = max(best, length)
    return best
