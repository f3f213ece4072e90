"""What writes queries for a passage without any model: titles, headings, definitions, questions, key words, crops."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import regex

from bge_cocktail.core.registry import Registry
from bge_cocktail.search.bm25 import UNSPACED, search_words
from bge_cocktail.synthesizing.passages import Passage, sentences


@dataclass(frozen=True, slots=True)
class WrittenQuery:
    """A query and the text that answers it.

    Attributes:
        text: The query.
        passage: Row of the passage that it was written for.
        writer: The name of what wrote it.
        positive: The text that answers it, where that isn't the passage as it is.
    """

    text: str
    passage: int
    writer: str
    positive: str | None = None


class WordStatistics:
    """How rare words are in a corpus.

    Args:
        texts: All of it.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        documents: Counter[str] = Counter()
        count = 0
        for text in texts:
            count += 1
            documents.update(set(search_words(text)))
        self._unknown = math.log(1 + count)
        self._rarity = {word: math.log((1 + count) / (1 + number)) for word, number in documents.items()}

    def weight(self, text: str) -> float:
        """Return how much a text's words tell it from others: the sum of log((1 + N) / (1 + n)) over the root of their
        number.

        The inverse document frequency (Spärck Jones 1972, doi:10.1108/eb026526), of each word once.
        """
        words = set(search_words(text))
        return sum(self._rarity.get(word, self._unknown) for word in words) / math.sqrt(len(words)) if words else 0.0


Written = Iterable[str | tuple[str, str]]
Writer = Callable[[Passage, WordStatistics], Written]
"""Returns queries, the best first, or pairs of a query and what is left of the passage to answer it."""

query_writers: Registry[Writer] = Registry("query-writers")

LONGEST_QUERY = 150
_HAN = regex.compile(rf"[{UNSPACED}]")
_HEADING = regex.compile(r"^#{1,6}\s+(.+?)\s*#*$")
# "The Brell kiln is a ...": what is before the verb is what is explained
_IS = regex.compile(
    r"^(?:(?:The|A|An)\s+)?(?P<what>[\p{L}\p{N}][^,;:.()!?]{1,60}?)(?:\s+\([^)]*\))?\s+(?P<verb>is|are)\s+"
    r"(?P<rest>(?:an?|the|one of|any)\s.+)"
)
_IS_HAN = regex.compile(r"^(?P<what>[\p{Han}\p{L}\p{N}]{2,12}?)(?:是|指的是|即)(?P<rest>[^。？！]{4,})")
_SMALL = frozenset(
    "this that these those it they he she we you there here which what who such one most more".split()  # noqa: SIM905
)
_SMALL_HAN = ("这", "那", "它", "他", "她", "其", "我", "你", "也", "都", "就", "不", "但")


@query_writers("title", train_only=True)
def by_title(passage: Passage, _words: WordStatistics) -> Written:
    """The document's title, which the text without it answers; for train only."""
    if passage.title and passage.text:
        yield passage.title, passage.text


@query_writers("heading")
def by_heading(passage: Passage, _words: WordStatistics) -> Written:
    """Headings in Markdown, and a first line that is no sentence."""
    lines = passage.text.splitlines()
    for line in lines:
        if found := _HEADING.match(line.strip()):
            yield found[1]
    first = lines[0].strip() if lines else ""
    if len(lines) > 1 and 0 < len(first) <= 80 and first[-1] not in ".!?。！？:：,，;；" and not first.startswith("#"):
        yield first


@query_writers("definition")
def by_definition(passage: Passage, _words: WordStatistics) -> Written:
    """ "What is X", where a sentence says what X is."""
    for sentence in sentences(passage.text):
        if found := _IS_HAN.match(sentence):
            if not found["what"].startswith(_SMALL_HAN):
                yield f"什么是{found['what']}"
        elif (found := _IS.match(sentence)) and found["what"].split()[0].lower() not in _SMALL:
            yield f"what {found['verb']} {_in_lower_case(found['what'])}"


# what a sentence says, and the question that it answers
_ANSWERS: tuple[tuple[regex.Pattern[str], str], ...] = tuple(
    (regex.compile(pattern), question)
    for pattern, question in (
        (r"^(?:To|In order to) (?P<a>[\p{Ll}][^,.;]{3,70}),", "how do I {a}"),
        (r"^(?:If|When|Whenever) (?P<a>[^,.;]{5,80}),", "what to do if {a}"),
        (r"^(?P<a>[^,.;]{3,60}?) (?:is|are) used (?:for|to|in|as)\b", "what is {a} used for"),
        (r"^(?P<a>[^,.;]{3,60}?) (?:is|are) caused by\b", "what causes {a}"),
        (
            r"^(?P<a>[^,.;]{3,60}?) (?:is|are|lies?|stands?) (?:located )?(?:in|at|behind|beside|under|near)\b",
            "where is {a}",
        ),
        (r"^(?P<a>[^,.;]{3,60}?) consists? of\b", "what does {a} consist of"),
        (
            r"^(?P<a>[^,.;]{3,60}?) (?:takes?|lasts?) [^,.;]*\b(?:second|minute|hour|day|week|month|year)s?\b",
            "how long does {a} take",
        ),
        (r"^(?P<a>[^,.;]{3,60}?) costs?\b", "how much does {a} cost"),
        (r"^(?P<a>[^,.;]{3,60}?) (?:must|may|should) (?:not|never|only)\b", "what must be minded with {a}"),
        (r"^(?P<a>[^,;]{8,90}?),? because\b", "why {a}"),
        (r"^(?:如果|若|要是|一旦)(?P<a>[^，。；]{2,30})[，,]", "{a}怎么办"),
        (r"^(?:为了|要|想要)(?P<a>[^，。；]{3,30})[，,]", "怎么{a}"),
        (r"^(?P<a>[^，。；]{2,15}?)(?:用于|用来)", "{a}有什么用"),
        (r"^(?P<a>[^，。；]{2,15}?)(?:位于|设在|在)[^，。；]{2,}", "{a}在哪里"),
        (r"^(?P<a>[^，。；]{2,15}?)(?:由|包括)[^，。；]{2,}(?:组成|等)?", "{a}包括什么"),
        (r"^(?P<a>[^，。；]{2,15}?)(?:需要|要)[^，。；]*(?:分钟|小时|天|周|个月|年)", "{a}要多久"),
        (r"因为[^，。；]{2,}[，,](?:所以)?(?P<a>[^，。；]{3,25})", "为什么{a}"),
    )
)


@query_writers("question")
def by_question(passage: Passage, _words: WordStatistics) -> Written:
    """Questions in English and Chinese that sentences of certain forms answer ("To light the kiln, ...")."""
    for sentence in sentences(passage.text):
        for pattern, question in _ANSWERS:
            found = pattern.search(sentence)
            if found and found["a"].split()[0].lower() not in _SMALL and not found["a"].startswith(_SMALL_HAN):
                yield question.format(a=_in_lower_case(found["a"].strip()))
                break


@query_writers("keywords")
def by_keywords(passage: Passage, words: WordStatistics) -> Written:
    """The phrases that tell the passage from others: two of them, then the next two.

    Phrases lie between stop words and punctuation, as RAKE has them (Rose et al. 2010), weighed by the rarity of their
    words in the corpus instead of by their neighbours.
    """
    weights = {phrase: words.weight(phrase) for phrase in dict.fromkeys(_phrases(passage.whole))}
    best = sorted(weights, key=lambda phrase: (-weights[phrase], phrase))
    chosen: list[str] = []
    for phrase in best:
        # a phrase within another says nothing more
        if not any(phrase in other or other in phrase for other in chosen):
            chosen.append(phrase)
        if len(chosen) == 4:
            break
    for pair in (chosen[:2], chosen[2:]):
        if pair:
            yield " ".join(pair)


@query_writers("crop", train_only=True)
def by_crop(passage: Passage, words: WordStatistics) -> Written:
    """A sentence as the query, and the passage without it as what answers it (ICT, arXiv:1906.00300); for train only.

    Of passages of three sentences or more, the sentences with the rarest words.
    """
    found = sentences(passage.text)
    if len(found) < 3:
        return
    weights = {sentence: words.weight(sentence) for sentence in found}
    for sentence in sorted(weights, key=lambda one: (-weights[one], one))[:2]:
        rest = " ".join(one for one in found if one != sentence)
        yield sentence, f"{passage.title} {rest}".strip()


def write_queries(
    passages: Sequence[Passage], rows: Sequence[int], names: Sequence[str], most: int, words: WordStatistics
) -> Iterator[WrittenQuery]:
    """Yield the queries of each passage: of every writer its best, then of every writer its next, until enough.

    Args:
        passages: All of the corpus.
        rows: For which to write.
        names: Of the writers, in their order.
        most: Queries for each passage.
        words: Of the corpus.
    """
    chosen = [(name, query_writers[name]) for name in names]
    for row in rows:
        left = {name: iter(writer(passages[row], words)) for name, writer in chosen}
        written: set[str] = set()
        while left and len(written) < most:
            for name in list(left):
                one = next(left[name], None)
                if one is None:
                    del left[name]
                    continue
                text, positive = (one, None) if isinstance(one, str) else one
                text = " ".join(text.split())
                if text in written or len(text) > LONGEST_QUERY or len(written) == most:
                    continue
                written.add(text)
                yield WrittenQuery(text, row, name, positive)


def _in_lower_case(text: str) -> str:
    """A text's first word in lower case, unless it is a name or an abbreviation as far as one can tell."""
    first, _, rest = text.partition(" ")
    is_word = first[:1].isupper() and first[1:].islower() and not rest[:1].isupper()
    return f"{first.lower()} {rest}".strip() if is_word else text


_STOPS_HAN = regex.compile(
    "的|了|在|是|和|与|或|及|等|从|把|被|为|以|对|由|到|向|而|但|也|都|就|不|很|更|最|每|个|一|二|三|这|那|其|它|他|她|我|你|们|"
    "可以|需要|必须|应该|如果|因为|所以|以及|或者|并且|然后|之前|之后|时候|没有"
)


def _phrases(text: str) -> Iterator[str]:
    """Runs of words between stop words and punctuation, of one to four words (two to eight Chinese characters)."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    for run in regex.split(r"[^\p{L}\p{N}\p{M}\s'’-]+|\n", text):
        if _HAN.search(run):
            yield from (part for part in _STOPS_HAN.split(regex.sub(r"\s", "", run)) if 2 <= len(part) <= 8)
            continue
        phrase: list[str] = []
        for word in [*run.split(), "the"]:
            bare = word.lower().strip("'’-")
            if bare in ENGLISH_STOP_WORDS or not bare:
                if 1 <= len(phrase) <= 4 and not any(one.isdigit() for one in phrase):
                    yield " ".join(phrase)
                phrase = []
            else:
                phrase.append(bare)
