"""The contrastive loss of a loaded model as something to differentiate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bge_cocktail.embed import batches_by_tokens, token_counts
from bge_cocktail.losses import batch_relevance, info_nce
from bge_cocktail.merging.tensors import Key
from bge_cocktail.records import Record

if TYPE_CHECKING:
    import torch

    from bge_cocktail.merging.tasting import ModelTasting

CHUNK_TOKENS = 4096
Features = dict[str, Any]


def batch_loss(
    tasting: ModelTasting,
    batch: Sequence[Record],
    known: Mapping[str, set[str]],
    forward: Callable[[Features], torch.Tensor],
) -> torch.Tensor:
    """InfoNCE of a batch of examples, with a graph to its parameters.

    Args:
        tasting: Holds the loaded model, its tokenizer and its prompts.
        batch: The examples.
        known: Positives by query, so that none counts as a negative.
        forward: Gives embeddings, shape (texts, dimensions), from tokenised texts.

    Returns:
        A scalar.
    """
    import torch

    model, encoder = tasting.model, tasting.encoder(0)
    most = max(len(record.neg) for record in batch)
    documents, relevance = batch_relevance(batch, negatives=most, known_positives=known)
    queries = [(encoder.prompt_for("query") if one.prompt is None else one.prompt) + one.query for one in batch]
    texts = queries + [encoder.prompt_for("document") + text for text in documents]
    # chunks of nearly equal length, so that little is computed for padding
    chunks = batches_by_tokens(token_counts(model, texts), tasting.encoding.batch_tokens or CHUNK_TOKENS)
    parts = []
    for chunk in chunks:
        features = model.preprocess([texts[row] for row in chunk])
        features = {name: v.to(model.device) if hasattr(v, "to") else v for name, v in features.items()}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=encoder.precision == "bf16"):
            parts.append(forward(features).float())
    back = torch.from_numpy(np.argsort(np.concatenate(chunks)))
    embeddings = torch.nn.functional.normalize(torch.cat(parts), dim=1)[back.to(model.device)]
    relevant = torch.from_numpy(relevance).to(model.device)
    temperature = tasting.plan.options.loss_temperature
    return info_nce(embeddings[: len(batch)], embeddings[len(batch) :], relevant, temperature)


def names_of(tasting: ModelTasting) -> dict[Key, str]:
    """The name that each tensor has in the loaded model."""
    by_place = {value.data_ptr(): name for name, value in tasting.model.state_dict().items()}
    return {key: by_place[parameter.data_ptr()] for key, parameter in tasting.parameters.items()}
