"""What is looked at before a run's first step, so that no later one stumbles over it."""

from __future__ import annotations

from pathlib import Path

from bge_cocktail.devices import choose_device
from bge_cocktail.hub import model_folder
from bge_cocktail.layout import check_length
from bge_cocktail.options import Encoding, Evaluating
from bge_cocktail.ranking import parse_measure


def check_judging(base: Path, encoding: Encoding, judging: Evaluating) -> None:
    """Raise for what the evaluation, hours later, would raise for.

    Args:
        base: Folder of the base model.
        encoding: How texts are embedded.
        judging: How models are judged.

    Raises:
        UsageError: No such device or measure, or a length beyond the model's positions.
        DataError: No such reranker.
    """
    check_length(base, encoding.max_length)
    choose_device(encoding.device)
    for name in judging.metrics:
        parse_measure(name)
    if judging.reranker is not None:
        model_folder(judging.reranker)
