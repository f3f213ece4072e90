"""Where a model changed: queries gained and lost, kinds of texts, judgements that are likely missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import numpy as np
import regex

from bge_cocktail.core.outputs import as_written
from bge_cocktail.evaluating.scores import Score, bootstrap_interval
from bge_cocktail.evaluating.store import EvaluationDetails

# words; the last bucket is open
LENGTHS = (4, 8, 16, 32, 64, 128)


SCRIPTS = (
    "Latin",
    "Han",
    "Hiragana",
    "Katakana",
    "Hangul",
    "Cyrillic",
    "Arabic",
    "Devanagari",
    "Greek",
    "Hebrew",
    "Thai",
)
FEWEST = 5
_LETTERS = {name: regex.compile(rf"\p{{{name}}}") for name in SCRIPTS}


@dataclass(frozen=True, slots=True)
class QueryChange:
    """A query or text that another model does better or worse on.

    Attributes:
        task: Its task.
        id: Of the query or text.
        text: What was asked; of a pair, both texts.
        before: Its value under the first model.
        after: Under the second.
        relevant: The relevant documents with their ranks before and after (None: not found), or the label.
        answers: What each said: the first documents, with their texts, or the label.
        own_documents: Whether the documents are the query's own, so that their ids mean something else at others.
    """

    task: str
    id: str
    text: Any
    before: float
    after: float
    relevant: Any
    answers: tuple[Any, Any]
    own_documents: bool = False

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after - self.before

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        value = asdict(self)
        # the names that files have had from the first version on
        return {{"relevant": "wanted", "answers": "said"}.get(name, name): value[name] for name in value}


@as_written("what an evaluation kept of texts and answers")
def query_changes(before: tuple[str, Score], after: tuple[str, Score], details: EvaluationDetails) -> list[QueryChange]:
    """What changed on one task, the largest gains first, the largest losses last; what didn't change is left out.

    Args:
        before: A model's name and its score on the task.
        after: Another's.
        details: Of their evaluations.
    """
    (one, first), (other, second) = before, after
    texts = details.texts.get(first.task, {})
    asked, documents = texts.get("asked", {}), texts.get("documents", {})
    said = [details.answers.get((name, first.task), {}) for name in (one, other)]
    changes = []
    for name, value in first.per_query.items():
        changed = second.per_query.get(name, value)
        if changed == value or name not in asked or any(name not in answers for answers in said):
            continue
        own = {**documents, **asked[name].get("documents", {})}
        answers = [answer[name] for answer in said]
        wanted, shown = _explained(asked[name]["wanted"], answers, own)
        both, alone = (shown[0], shown[1]), "documents" in asked[name]
        changes.append(QueryChange(first.task, name, asked[name]["text"], value, changed, wanted, both, alone))
    return sorted(changes, key=lambda one: (-one.difference, one.id))


class BucketChange(TypedDict):
    """The mean change on the texts of a bucket, such as those of 8 to 15 words."""

    kind: str
    bucket: str
    count: int
    before: float
    after: float
    difference: float
    interval: tuple[float, float]


class LikelyRelevant(TypedDict):
    """A document that `models` models rank first for a query, `lead` in similarity before the best relevant one."""

    query: str
    text: str
    document: str
    document_text: str
    models: int
    lead: float


def by_bucket(
    before: Score, after: Score, texts: Mapping[str, Any], *, confidence: float = 0.95, seed: int = 13
) -> list[BucketChange]:
    """Return the change on kinds of texts of one task: by number of words, and by script or language.

    Args:
        before: A model's score.
        after: Another's.
        texts: Of the task, as `EvaluationDetails` has them.
        confidence: Of the intervals.
        seed: Of the bootstrap.

    Returns:
        The buckets; kinds that all texts are of are left out, and buckets of fewer than 5 texts.
    """
    asked = {
        name: _joined(one["text"])
        for name, one in texts.get("asked", {}).items()
        if name in before.per_query and name in after.per_query
    }
    ways: list[tuple[str, Callable[[str], str]]] = [("words", _length_range), ("script", script), *_languages()]
    rows: list[BucketChange] = []
    for kind, way in ways:
        buckets: dict[str, list[str]] = {}
        for name, text in asked.items():
            buckets.setdefault(way(text), []).append(name)
        kept = {bucket: names for bucket, names in buckets.items() if len(names) >= FEWEST}
        if len(kept) < 2:
            continue
        for bucket, names in sorted(kept.items(), key=lambda item: _order(item[0])):
            values = np.array([[before.per_query[name], after.per_query[name]] for name in names])
            differences = values[:, 1] - values[:, 0]
            rows.append(
                {
                    "kind": kind,
                    "bucket": bucket,
                    "count": len(names),
                    "before": float(values[:, 0].mean()),
                    "after": float(values[:, 1].mean()),
                    "difference": float(differences.mean()),
                    "interval": bootstrap_interval(differences, confidence=confidence, seed=seed),
                }
            )
    return rows


def likely_relevant(
    models: Sequence[str], task: str, details: EvaluationDetails, most: int = 20
) -> list[LikelyRelevant]:
    """Documents that no judgement calls relevant and that most models rank before every one that is.

    Such are often relevant in truth: the judgements of most sets are incomplete. The more models agree, and the further
    the document's similarity lies above the best relevant one's, the likelier.

    Args:
        models: Their names.
        task: A retrieval.
        details: Of their evaluations.
        most: How many to name.

    Returns:
        The likeliest first.
    """
    texts = details.texts.get(task, {})
    asked, documents = texts.get("asked", {}), texts.get("documents", {})
    leads: dict[tuple[str, str], list[float]] = {}
    for model in models:
        for query, answer in details.answers.get((model, task), {}).items():
            if not isinstance(answer, dict) or not answer["found"]:
                continue
            first, similarity = next(iter(answer["found"].items()))
            if first in answer["ranks"] or query not in asked or first not in documents:
                continue
            if first in asked[query].get("unwanted", ()):  # somebody looked, and it is not relevant
                continue
            relevant = [value for one, value in answer["found"].items() if one in answer["ranks"]]
            lead = similarity - max(relevant, default=min(answer["found"].values()))
            leads.setdefault((query, first), []).append(lead)
    ranked = sorted(leads.items(), key=lambda item: (-len(item[1]), -sum(item[1]) / len(item[1]), item[0]))
    asking = sum((model, task) in details.answers for model in models)
    agreed = [(key, values) for key, values in ranked if 2 * len(values) > asking]
    return [
        {
            "query": query,
            "text": asked[query]["text"],
            "document": document,
            "document_text": documents[document],
            "models": len(values),
            "lead": sum(values) / len(values),
        }
        for (query, document), values in agreed[:most]
    ]


def script(text: str) -> str:
    """Return the writing system that most letters of a text are of."""
    counts = {name: len(letters.findall(text)) for name, letters in _LETTERS.items()}
    most = max(counts, key=lambda name: counts[name])
    return most if counts[most] else "other"


def _explained(wanted: Any, answers: Sequence[Any], documents: Mapping[str, str]) -> tuple[Any, list[Any]]:
    if not isinstance(wanted, dict):
        return wanted, list(answers)
    ranks = [answer["ranks"] for answer in answers]
    relevant = [
        {"document": document, "text": documents.get(document, ""), "ranks": [rank.get(document) for rank in ranks]}
        for document in wanted
    ]
    relevant.sort(key=lambda one: min((rank for rank in one["ranks"] if rank), default=10**9))
    shown = [
        [
            {"document": one, "text": documents.get(one, ""), "similarity": similarity, "relevant": one in wanted}
            for one, similarity in answer["found"].items()
        ]
        for answer in answers
    ]
    return relevant, shown


def _joined(text: Any) -> str:
    return text if isinstance(text, str) else " ".join(text)


def _length_range(text: str) -> str:
    """Return the range of lengths in words that a text falls into, such as ``8-15``."""
    # scripts without spaces between words: about two characters a word
    count = len(text.split()) if script(text) not in ("Han", "Hiragana", "Katakana", "Thai") else (len(text) + 1) // 2
    bucket = sum(count >= length for length in LENGTHS)
    starts = (1, *LENGTHS)
    return f"{starts[bucket]}-{LENGTHS[bucket] - 1}" if bucket < len(LENGTHS) else f"{LENGTHS[-1]} or more"


def _languages() -> list[tuple[str, Callable[[str], str]]]:
    """Languages by py3langid, where it is installed."""
    try:
        import py3langid
    except ImportError:
        return []
    return [("language", lambda text: str(py3langid.classify(text)[0]))]


def _order(bucket: str) -> tuple[int, str]:
    number = re.match(r"\d+", bucket)
    return (int(number[0]) if number else 0, bucket)
