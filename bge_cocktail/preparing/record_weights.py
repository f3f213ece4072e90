"""How much each train record counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.core.registry import Registry
from bge_cocktail.data.record import Record, normalise
from bge_cocktail.models.encoder import Encoder, encode_queries_of
from bge_cocktail.options import PrepareOptions
from bge_cocktail.search.exact import top_k

Weights = NDArray[np.float64]
Weigh = Callable[[Sequence[Record], PrepareOptions, Encoder | None], Weights]
"""Records in; a weight for each, shape (records,)."""
record_weightings: Registry[Weigh] = Registry("record-weightings")
DEPTH = 100
BLOCK = 1024


@record_weightings("column")
def by_column(records: Sequence[Record], options: PrepareOptions, _encoder: Encoder | None) -> Weights:
    """A column of the data (clicks, votes): `weight_column`."""
    name = options.weight_column
    if name is None:
        raise UsageError("weighing by a column needs its name: `weight_column`")
    if name == "weight":
        raise UsageError("the column 'weight' counts already; `weight_column` names another")
    weights = []
    for number, record in enumerate(records, start=1):
        value = record.extra.get(name)
        try:
            weight = float("nan" if value is None or isinstance(value, bool) else value)
        except (TypeError, ValueError):
            weight = float("nan")
        if not 0 <= weight < float("inf"):
            raise DataError(
                f"train record {number} ({record.query[:40]!r}): column '{name}' must be a number of at least 0 to "
                f"weigh by, got {value!r}"
            )
        weights.append(weight)
    return np.array(weights)


@record_weightings("frequency")
def by_frequency(records: Sequence[Record], _options: PrepareOptions, _encoder: Encoder | None) -> Weights:
    """Less for what is frequent: 1 / sqrt(records with the same positive)."""
    counts = Counter(normalise(record.pos[0]) for record in records)
    return np.array([counts[normalise(record.pos[0])] ** -0.5 for record in records])


@record_weightings("task")
def by_task(records: Sequence[Record], options: PrepareOptions, _encoder: Encoder | None) -> Weights:
    """So that a task of n records counts n ** (1 / task temperature) in all (arXiv:1907.05019, there for languages)."""
    counts = Counter(record.task or "" for record in records)
    return np.array([counts[record.task or ""] ** (1 / options.task_temperature - 1) for record in records])


@record_weightings("difficulty")
def by_difficulty(records: Sequence[Record], _options: PrepareOptions, encoder: Encoder | None) -> Weights:
    """More for what the current encoder finds hard: log2(1 + rank of the first positive among all), up to rank 100."""
    if encoder is None:
        raise UsageError("weighing by difficulty needs the current encoder: `model`")
    documents = list(dict.fromkeys(text for record in records for text in (*record.pos, *record.neg)))
    row = {text: number for number, text in enumerate(documents)}
    embeddings = encoder.encode_document(documents)
    queries = encode_queries_of(records, encoder)
    _, neighbours = top_k(queries, embeddings, DEPTH)
    positive = np.array([row[record.pos[0]] for record in records])
    hit = neighbours == positive[:, None]
    ranks = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, DEPTH)
    weights: Weights = np.log2(1 + ranks)
    return weights


def weigh(records: Sequence[Record], options: PrepareOptions, encoder: Encoder | None) -> list[Record]:
    """Records with the chosen weights multiplied (with those they have, too), scaled to a mean of 1.

    Raises:
        DataError: All weights are 0, or a column holds something else than weights.
    """
    if not options.weigh or not records:
        return list(records)
    weights = np.array([record.weight for record in records])
    for name in options.weigh:
        weights = weights * record_weightings[name](records, options, encoder)
    if not weights.sum() > 0:
        raise DataError(f"weighing by {', '.join(options.weigh)} leaves no train record any weight")
    weights = weights / weights.mean()
    return [replace(record, weight=round(weight, 6)) for record, weight in zip(records, weights.tolist(), strict=True)]
