"""Whether what is trained on holds what is tested on."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bge_cocktail.core.errors import DataError
from bge_cocktail.data.record import text_key
from bge_cocktail.data.sources import SPLITS
from bge_cocktail.models.encoder import Encoder
from bge_cocktail.options import PrepareOptions
from bge_cocktail.preparing.duplicates import find_duplicates
from bge_cocktail.preparing.store import PrepareReport, Store

SHOWN = 5
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leak:
    """A text of a held-out set that stands in train.

    Attributes:
        held_out: Name of the set.
        role: ``query`` (of labelled texts: the text) or ``document``.
        finder: What found it: exact, near, semantic.
        similarity: How alike the two texts are, by the finder.
        train_row: Row of the train example.
        train: The text in train.
        other: The text in the held-out set.
    """

    held_out: str
    role: str
    finder: str
    similarity: float
    train_row: int
    train: str
    other: str


def find_leaks(
    train: Sequence[tuple[str, ...]],
    held_out: Mapping[str, Sequence[tuple[str, ...]]],
    options: PrepareOptions,
    encoder: Encoder | None,
) -> list[Leak]:
    """Queries and documents of held-out sets that stand in train, exactly or by the chosen finders.

    Args:
        train: The own texts of each train example: the query first, then documents.
        held_out: The same of each held-out set, by name.
        options: Which finders, with which thresholds.
        encoder: For the semantic finder.
    """
    leaks: list[Leak] = []
    finders = list(dict.fromkeys(["exact", *options.duplicates]))
    for role in ("query", "document"):
        # a test query may stand in train as a query or as a positive; documents are compared with documents
        rows, texts = _texts(train, "any" if role == "query" else role)
        own = len(texts)
        names: list[str] = []
        for name, examples in held_out.items():
            _, more = _texts(examples, role)
            texts += more
            names += [name] * len(more)
        if own == 0 or own == len(texts):
            continue
        for finder, (one, other, similarity) in find_duplicates(texts, finders, options, encoder, own):
            name = names[other - own]
            leaks.append(Leak(name, role, finder, round(similarity, 4), rows[one], texts[one], texts[other]))
    return leaks


def check_leaks(
    staged: Store,
    splits: Sequence[int],
    held_out: dict[str, list[tuple[str, ...]]],
    options: PrepareOptions,
    encoder: Encoder | None,
    report: PrepareReport,
) -> set[bytes]:
    """Look for leaks where there can be any, report them, and do about them what the options say.

    Args:
        staged: All examples.
        splits: The split of each.
        held_out: The own texts of further test sets, by name.
        options: What is to be done about a leak.
        encoder: For the semantic finder.
        report: Gets the leaks.

    Returns:
        The keys of train texts that stand in a test set and have to go.

    Raises:
        DataError: Test data leak into train, and that is refused.
    """
    if not held_out and not options.keep_splits:
        return set()  # the splits were made so that none leaks
    own: list[list[tuple[str, ...]]] = [[], [], []]
    for split, example in zip(splits, staged.examples(), strict=True):
        own[split].append(example.own_texts())
    if options.keep_splits:
        held_out = {**{name: texts for name, texts in zip(SPLITS[1:], own[1:], strict=True) if texts}, **held_out}
    leaks = find_leaks(own[0], held_out, options, encoder)
    if options.keep_splits and own[1] and own[2]:
        among = [
            leak for leak in find_leaks(own[1], {"test, in dev": own[2]}, options, encoder) if leak.role == "query"
        ]
        if among:
            log.warning("%d queries or texts of test stand in dev", len({leak.other for leak in among}))
        report["leaks"] = summarise([*leaks, *among])
    else:
        report["leaks"] = summarise(leaks)
    queries = [leak for leak in leaks if leak.role == "query"]
    if not queries:
        return set()
    # a test text that several train texts are like is one leak, though all of those have to go
    counts = Counter(name for name, _ in dict.fromkeys((leak.held_out, leak.other) for leak in queries))
    said = "; ".join(f"{count} queries or texts of {name}" for name, count in counts.items())
    if options.on_leak == "refuse":
        shown = "\n".join(
            f"  {query.held_out}: {query.other[:60]!r} ({query.finder}) {query.train[:60]!r}" for query in queries[:5]
        )
        raise DataError(
            f"test data leak into train: {said}. For example (held out, how found, in train):\n{shown}\n"
            "Take them out of train with `on_leak=drop`, or go on with `on_leak=warn`"
        )
    log.warning("test data leak into train: %s%s", said, "; dropped from train" if options.on_leak == "drop" else "")
    return {text_key(leak.train) for leak in queries} if options.on_leak == "drop" else set()


_EXAMPLE_FIELDS = ("similarity", "train", "other")


def summarise(leaks: Sequence[Leak]) -> dict[str, Any]:
    """Return, for each held-out set and each ``ROLE, FINDER``, how many of its texts leaked, and a few examples.

    A text that several finders found counts for the first.
    """
    summary: dict[str, Any] = {}
    # reversed, so that the first leak of a text is the one that stays
    first = {(leak.held_out, leak.role, leak.other): leak for leak in reversed(leaks)}
    for leak in reversed(first.values()):
        groups = summary.setdefault(leak.held_out, {})
        group = groups.setdefault(f"{leak.role}, {leak.finder}", {"count": 0, "examples": []})
        group["count"] += 1
        if len(group["examples"]) < SHOWN:
            group["examples"].append({key: value for key, value in asdict(leak).items() if key in _EXAMPLE_FIELDS})
    return summary


def _texts(examples: Sequence[tuple[str, ...]], role: str) -> tuple[list[int], list[str]]:
    rows: list[int] = []
    texts: list[str] = []
    for row, own in enumerate(examples):
        chosen = own if role == "any" else own[:1] if role == "query" else own[1:]
        rows += [row] * len(chosen)
        texts += chosen
    return rows, texts
