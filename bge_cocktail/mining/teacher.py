"""A cross-encoder that judges pairs: filters false negatives and gives scores to learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.devices import enough_memory
from bge_cocktail.errors import CocktailError, DataError
from bge_cocktail.hub import model_folder
from bge_cocktail.layout import read_object
from bge_cocktail.options import Mining
from bge_cocktail.records import Record

Teacher = Callable[[Sequence[tuple[str, str]]], NDArray[np.float64]]
"""Pairs of query and document in; a score for each, higher for more relevant, shape (pairs,)."""


def load_teacher(name: str, *, device: str = "auto", batch_size: int = 32) -> Teacher:
    """A cross-encoder (reranker) as a teacher.

    Args:
        name: A folder or a hub name, such as ``BAAI/bge-reranker-base``.
        device: Where it computes.
        batch_size: Pairs in a batch.

    Raises:
        DataError: It is no reranker.
        CocktailError: It can't be loaded, or gives more than one number for a pair.
    """
    from bge_cocktail.devices import choose_device

    folder = model_folder(name)
    architectures = read_object(folder / "config.json").get("architectures") or ["none"]
    if not str(architectures[0]).endswith("ForSequenceClassification"):
        raise DataError(
            f"{name} is no reranker: a teacher is a ...ForSequenceClassification with one output, this one is "
            f"{architectures[0]}, whose scores would be random"
        )
    from safetensors import SafetensorError
    from sentence_transformers import CrossEncoder

    try:
        model = CrossEncoder(str(folder), device=choose_device(device), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CocktailError(f"{name}: the teacher can't be loaded: {error}") from error
    if model.config.num_labels != 1:
        raise CocktailError(
            f"{name} gives {model.config.num_labels} numbers for a pair; a teacher is a reranker with one"
        )

    def score(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        with enough_memory(f"{name} as teacher", "give a smaller teacher, or --device cpu"):
            scores = model.predict(list(pairs), batch_size=batch_size, show_progress_bar=False)
        return np.asarray(scores, np.float64)

    return score


class Scored:
    """A teacher that judges no pair twice.

    Args:
        teacher: Judges pairs.
    """

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._known: dict[tuple[str, str], float] = {}

    def __call__(self, query: str, documents: Sequence[str]) -> list[float]:
        """The score of each document for a query."""
        return [self._known[query, document] for document in documents]

    def learn(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Judge the pairs that weren't yet."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        if not new:
            return
        scores = np.asarray(self._teacher(new), np.float64)
        if not np.isfinite(scores).all():
            bad = new[int(np.flatnonzero(~np.isfinite(scores))[0])]
            raise CocktailError(
                f"the teacher gives NaN or infinite scores, first for: {bad[0][:60]!r} | {bad[1][:60]!r}"
            )
        self._known.update(zip(new, scores.tolist(), strict=True))

    def forget(self) -> None:
        """Keep no scores: the next records have other queries."""
        self._known.clear()


def teacher_limit(positives: Sequence[float], options: Mining) -> float:
    """The score above which a candidate is taken for relevant; infinite without a margin or limit."""
    lowest = min(positives)
    limit = float("inf")
    if options.teacher_margin is not None:
        limit = lowest - options.teacher_margin * abs(lowest)
    if options.teacher_max is not None:
        limit = min(limit, options.teacher_max)
    return limit


def with_scores(record: Record, scored: Scored) -> Record:
    """The record with the teacher's scores of all its texts."""
    return replace(
        record,
        pos_scores=tuple(scored(record.query, record.pos)),
        neg_scores=tuple(scored(record.query, record.neg)),
    )
