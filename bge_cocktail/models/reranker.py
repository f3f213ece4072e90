"""Cross-encoders: a query and a document read together, and one score for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.devices import enough_memory
from bge_cocktail.core.errors import CocktailError, DataError
from bge_cocktail.core.outputs import read_object
from bge_cocktail.models.encoder import CANT_LOAD, check_loaded, why_not
from bge_cocktail.models.folder import architectures, model_folder

Reranker = Callable[[Sequence[tuple[str, str]]], NDArray[np.float64]]
"""Pairs of query and document in; a score for each, higher for more relevant, shape (pairs,)."""


def load_reranker(name: str, *, device: str = "auto", batch_size: int = 32, logits: bool = False) -> Reranker:
    """Return a cross-encoder (reranker), which scores pairs of query and document.

    Args:
        name: A folder or a hub name, such as ``BAAI/bge-reranker-base``.
        device: Where it computes.
        batch_size: Pairs in a batch.
        logits: Scores as they come, without the model's own activation; a sigmoid makes all high ones 1.

    Raises:
        DataError: It is no reranker.
        CocktailError: It can't be loaded, or gives more than one number for a pair.
    """
    from bge_cocktail.core.devices import choose_device

    folder = model_folder(name)
    names = architectures(read_object(folder / "config.json"), folder / "config.json") or ["none"]
    if not names[0].endswith("ForSequenceClassification"):
        raise DataError(
            f"{name} is no reranker: such is a ...ForSequenceClassification with one output, this one is "
            f"{names[0]}, whose scores would be random"
        )
    import torch
    from sentence_transformers import CrossEncoder

    try:
        model = CrossEncoder(str(folder), device=choose_device(device), local_files_only=True, trust_remote_code=False)
    except CANT_LOAD as error:
        raise CocktailError(f"{name}: the reranker can't be loaded: {why_not(error)}") from error
    check_loaded(name, folder, model[0].auto_model, model.tokenizer)
    if model.config.num_labels != 1:
        raise CocktailError(f"{name} gives {model.config.num_labels} numbers for a pair; a reranker gives one")

    activation = torch.nn.Identity() if logits else None

    def score(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        with enough_memory(f"{name} as reranker", "give a smaller one, or `device=cpu`"):
            scores = model.predict(
                list(pairs), batch_size=batch_size, show_progress_bar=False, activation_fn=activation
            )
        return np.asarray(scores, np.float64)

    return score
