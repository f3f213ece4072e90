"""Whether what is trained on holds what is tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bge_cocktail.encoding import Encoder
from bge_cocktail.options import Preparing
from bge_cocktail.preparing.duplicates import find_duplicates

SHOWN = 5


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
    options: Preparing,
    encoder: Encoder | None,
) -> list[Leak]:
    """Queries and documents of held-out sets that stand in train, by every chosen finder.

    Args:
        train: The own texts of each train example: the query first, then documents.
        held_out: The same of each held-out set, by name.
        options: Which finders, with which thresholds.
        encoder: For the semantic finder.
    """
    leaks: list[Leak] = []
    for role in ("query", "document"):
        rows, texts = _texts(train, role)
        own = len(texts)
        names: list[str] = []
        for name, examples in held_out.items():
            _, more = _texts(examples, role)
            texts += more
            names += [name] * len(more)
        if own == 0 or own == len(texts):
            continue
        for finder, (one, other, similarity) in find_duplicates(texts, options, encoder):
            if one < own <= other:
                name = names[other - own]
                leaks.append(Leak(name, role, finder, round(similarity, 4), rows[one], texts[one], texts[other]))
    return leaks


def summarise(leaks: Sequence[Leak]) -> dict[str, Any]:
    """Counts by set, role and finder, and a few examples of each."""
    found: dict[str, Any] = {}
    for leak in leaks:
        one = found.setdefault(leak.held_out, {}).setdefault(
            f"{leak.role}, {leak.finder}", {"count": 0, "examples": []}
        )
        one["count"] += 1
        if len(one["examples"]) < SHOWN:
            one["examples"].append({key: value for key, value in asdict(leak).items() if key in _SAID})
    return found


_SAID = ("similarity", "train", "other")


def _texts(examples: Sequence[tuple[str, ...]], role: str) -> tuple[list[int], list[str]]:
    rows: list[int] = []
    texts: list[str] = []
    for row, own in enumerate(examples):
        chosen = own[:1] if role == "query" else own[1:]
        rows += [row] * len(chosen)
        texts += chosen
    return rows, texts
