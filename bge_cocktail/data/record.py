"""A record: one query with its positives and negatives; and the identity of a text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import xxhash

from bge_cocktail.core.errors import DataError, nearest

Text = str | tuple[str, str]
"""One text, or a pair such as premise and hypothesis."""
FIELDS = ("query", "pos", "neg", "pos_scores", "neg_scores", "prompt", "weight", "task", "id", "in_batch_negatives")
_FIELDS = frozenset(FIELDS)
_PLAIN = frozenset({"query", "pos", "neg"})
NEGATIVES = (
    *("neg", "negative", "negatives", "negs", "hard_neg", "hard_negs", "hard_negative", "hard_negatives"),
    *("negative_passages", "negative_documents", "negative_docs", "negative_contexts", "negative_ctxs"),
    *("hard_negative_ctxs", "rejected", "rejected_response", "rejected_responses", "distractors", "incorrect_answers"),
)
"""The names under which data sets keep negatives, the usual one first."""
_OTHER_NEGATIVES = frozenset(NEGATIVES[1:])
GRADES = re.compile(
    r"(?:label|rating|grade|class|(?:is_?)?(?:relevan\w*|positive|duplicate|match|correct)(?:_?(?:score|label))?)",
    re.IGNORECASE,
)
"""Columns that may say whether an answer is one."""
_NO = frozenset(("false", "no", "n", "irrelevant", "not relevant", "not_relevant", "non-relevant", "bad", "wrong"))
_NO |= {"incorrect", "negative", "unrelated", "not_duplicate", "mismatch"}


def says_no(value: object) -> bool:
    """Return whether a grade says that an answer is none: false, a number of at most 0, or such a word."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _NO:
            return True
        try:
            value = float(word)
        except ValueError:
            return False
    return isinstance(value, int | float) and value <= 0


@dataclass(frozen=True, slots=True)
class Record:
    """One training example, in FlagEmbedding's JSON Lines form.

    Attributes:
        query: The query's text.
        pos: Texts of its positives, at least one.
        neg: Texts of its negatives.
        pos_scores: A teacher's score for each positive, or none at all.
        neg_scores: A teacher's score for each negative, or none at all.
        prompt: Put before the query instead of the model's own query prompt.
        weight: Multiplies the record's loss.
        task: The data set that it belongs to.
        id: Its name.
        in_batch_negatives: Whether the other documents of a training batch are negatives of the query; not so where
            they may be of the query's own class (FlagEmbedding's ``no_in_batch_neg``).
        extra: Keys of the source that mean nothing here (``type``, ``category``), kept as they were.
    """

    query: str
    pos: tuple[str, ...]
    neg: tuple[str, ...] = ()
    pos_scores: tuple[float, ...] = ()
    neg_scores: tuple[float, ...] = ()
    prompt: str | None = None
    weight: float = 1.0
    task: str | None = None
    id: str | None = None
    in_batch_negatives: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object; what is at its default is left out, except `neg`."""
        value: dict[str, Any] = {"query": self.query, "pos": list(self.pos), "neg": list(self.neg)}
        if self.pos_scores:
            value["pos_scores"] = list(self.pos_scores)
        if self.neg_scores:
            value["neg_scores"] = list(self.neg_scores)
        for name in ("prompt", "task", "id"):
            if getattr(self, name) is not None:
                value[name] = getattr(self, name)
        if self.weight != 1.0:
            value["weight"] = self.weight
        if not self.in_batch_negatives:
            value["in_batch_negatives"] = False
        return {**value, **self.extra}


def normalise(text: str) -> str:
    """Return the form in which two texts count as the same: NFKC (full-width letters are letters), single spaces, case
    folded.
    """
    if text.isascii() and text.isprintable() and "  " not in text:  # most texts; all that is left to do to them
        return text.strip(" ").lower()
    # composed again after folding: "ß" with an accent becomes "s" and "s" with an accent
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def _begins(text: str) -> str:
    """Return what texts of different normal forms mostly begin with differently; "" where that can't be told."""
    return text.lstrip()[:1].lower() if text.isascii() else ""


def is_broken(text: str) -> bool:
    """Return whether a text holds half of a character (a lone surrogate), which no file can hold."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def positives_by_query(records: Iterable[Record]) -> dict[str, set[str]]:
    """Return all positives that any record gives for the same query, queries and texts in their normalised form."""
    positives: dict[str, set[str]] = {}
    for record in records:
        positives.setdefault(normalise(record.query), set()).update(normalise(text) for text in record.pos)
    return positives


def parse_record(value: object, where: str, note: Callable[[str], None] = lambda _: None) -> Record:
    """Check a JSON object and make it a record.

    Args:
        value: What one line of a record file held.
        where: ``file:line``, for the error message.
        note: Told of what is left out.

    Raises:
        DataError: Something is missing, empty, of the wrong type, or contradicts itself.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object with 'query' and 'pos', got {_show(value)}")
    if not _OTHER_NEGATIVES.isdisjoint(value):
        value = _one_name_of_negatives(value, where)
    plain = _PLAIN.issuperset(value)
    extra = {} if plain else {key: content for key, content in value.items() if key not in _FIELDS}
    for required in ("query", "pos"):
        if required not in value:
            suspect = next((key for key in extra if required in nearest(key, FIELDS)), None)
            hint = f" (is it '{suspect}'?)" if suspect else ""
            raise DataError(f"{where}: '{required}' is missing{hint}; found {', '.join(value) or 'nothing'}")
    query = _text(value["query"], where, "query")
    pos: Any = value["pos"]
    neg: Any = value.get("neg")
    neg_scores: Any = value.get("neg_scores")
    pos = tuple(pos) if _all_texts(pos) else _texts(_of_objects(pos, where, "pos"), where, "pos")
    if _all_texts(neg):
        neg = tuple(neg)
    else:
        neg, neg_scores = _without_blanks(neg, neg_scores, note)
        neg = _texts(_of_objects(neg, where, "neg"), where, "neg") if neg is not None else ()
    if not pos:
        raise DataError(f"{where}: 'pos' is empty; every record needs a positive")
    if neg:
        # few texts need to be normalised to be told apart
        begin = {"", *map(_begins, pos)}
        alike = neg if any(not _begins(text) for text in pos) else [text for text in neg if _begins(text) in begin]
        positives = {normalise(text) for text in pos} if alike else set()
        for text in alike:
            if normalise(text) in positives:
                raise DataError(f"{where}: a negative equals a positive: {_show(text)}")
    if plain:
        return Record(query, pos, neg)
    if extra.get("score") in (0, "0"):  # below 0 it is a model's number, a logit or a margin
        raise DataError(f"{where}: 'score' is 0, which says that 'pos' is no positive; put such texts into 'neg'")
    for name, grade in extra.items():
        # a label may be the name of a class, which prepare keeps: "0", "negative"
        of_class = name.lower() in ("label", "class") and isinstance(grade, str) and "relevant" not in grade.lower()
        if GRADES.fullmatch(name) and says_no(grade) and not of_class:
            raise DataError(
                f"{where}: '{name}' is {grade}, which says that 'pos' is no positive; put such texts into 'neg'"
            )
    weight = 1.0 if value.get("weight") is None else value["weight"]
    if not _is_number(weight) or weight < 0:
        raise DataError(f"{where}: 'weight' must be a number of at least 0, got {_show(weight)}")
    if isinstance(value.get("id"), int) and not isinstance(value["id"], bool):
        value = {**value, "id": str(value["id"])}
    optional = {name: value[name] for name in ("prompt", "task", "id") if value.get(name) is not None}
    for name, content in optional.items():
        if not isinstance(content, str):
            raise DataError(f"{where}: '{name}' must be a text, got {_show(content)}")
    in_batch = value.get("in_batch_negatives", True)
    if not isinstance(in_batch, bool):
        raise DataError(f"{where}: 'in_batch_negatives' must be true or false, got {_show(in_batch)}")
    return Record(
        query=query,
        pos=pos,
        neg=neg,
        pos_scores=_scores(value.get("pos_scores"), len(pos), where, "pos"),
        neg_scores=_scores(neg_scores, len(neg), where, "neg"),
        weight=float(weight),
        in_batch_negatives=in_batch,
        extra=extra,
        **optional,
    )


def _one_name_of_negatives(value: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the object with all its negatives under ``neg``."""
    neg: list[Any] = []
    for name in NEGATIVES:
        texts = value.get(name)
        if texts is not None:
            neg += text_list(texts, where, name)
    return {**{name: content for name, content in value.items() if name not in _OTHER_NEGATIVES}, "neg": neg}


def text_list(value: object, where: str, name: str) -> list[Any]:
    """Return texts as a list: a single text is a list of one, an object with ``text`` (and ``title``) is that text.

    Raises:
        DataError: It is something else.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise DataError(f"{where}: '{name}' must be a text or a list of texts, got {_show(value)}")
    texts = []
    for entry in value:
        if isinstance(entry, dict) and isinstance(entry.get("text"), str):
            title = entry.get("title")
            texts.append(f"{title} {entry['text']}".strip() if isinstance(title, str) else entry["text"])
        else:
            texts.append(entry)
    return texts


def _of_objects(value: object, where: str, name: str) -> object:
    """Return the texts of a list of objects, as Tevatron and DPR write passages; anything else as it is."""
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return text_list(value, where, name)
    return value


BLANK = "blank"


def is_blank(value: object) -> bool:
    """Return whether a cell holds no text."""
    return value is None or (isinstance(value, str) and not value.strip())


def _without_blanks(neg: object, scores: object, note: Callable[[str], None]) -> tuple[Any, Any]:
    """Return negatives, and the scores of those, without such as hold no text."""
    if not isinstance(neg, list) or not any(map(is_blank, neg)):
        return neg, scores
    kept = [row for row, text in enumerate(neg) if not is_blank(text)]
    for _ in range(len(neg) - len(kept)):
        note(BLANK)
    if isinstance(scores, list) and len(scores) == len(neg):
        scores = [scores[row] for row in kept]
    return [neg[row] for row in kept], scores


def _all_texts(values: Any) -> bool:
    """Return whether a value is a list of whole texts, none of them blank: what nearly all records hold."""
    if type(values) is not list:
        return False
    try:
        joined = "".join(values)
    except TypeError:
        return False
    return all(map(str.strip, values)) and not is_broken(joined)


def _text(value: object, where: str, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: '{name}' must be a text, got {_show(value)}")
    if not value or value.isspace():
        raise DataError(f"{where}: '{name}' is empty")
    if is_broken(value):
        raise DataError(f"{where}: '{name}' holds half of a character (a lone surrogate): {_show(value)}")
    return value


def _texts(value: object, where: str, name: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise DataError(f"{where}: '{name}' must be a list of texts, got {_show(value)}")
    for index, text in enumerate(value):
        if not isinstance(text, str) or not text or text.isspace() or is_broken(text):
            _text(text, where, f"{name}[{index}]")
    return tuple(value)


def _scores(value: object, count: int, where: str, name: str) -> tuple[float, ...]:
    if value is None or value == []:
        return ()
    if not isinstance(value, list) or not all(_is_number(score) for score in value):
        raise DataError(f"{where}: '{name}_scores' must be a list of numbers, got {_show(value)}")
    if len(value) != count:
        raise DataError(f"{where}: '{name}_scores' has {len(value)} numbers for {count} texts in '{name}'")
    return tuple(float(score) for score in value)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # neither NaN nor infinite, nor a whole number that no float can hold


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def text_key(text: str) -> bytes:
    """Return 16 bytes that say which text it is: equal for texts that `normalise` makes equal.

    It ignores case, kinds and numbers of spaces, and how letters with marks are composed.
    """
    return exact_key(normalise(text))


def exact_key(text: str) -> bytes:
    """Return 16 bytes that say which text it is, to the letter, as an encoder sees it."""
    return xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))


def short_key(text: str) -> int:
    """Return the first half of `text_key` as a number, for arrays of many."""
    return int.from_bytes(text_key(text)[:8], "little")


def pair_key(text: Text) -> str:
    """Return what texts, or pairs, have in common that count as the same; it ignores what `text_key` ignores."""
    return normalise(text) if isinstance(text, str) else "\x1f".join(map(normalise, text))
