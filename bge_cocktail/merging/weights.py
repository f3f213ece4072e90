"""Weights of models in a merge: given, uniform, or from the loss on a few examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bge_cocktail.encoding import Encoder
from bge_cocktail.errors import DataError, UsageError
from bge_cocktail.records import Record, positives_by_query

# LM-Cocktail's reference implementation takes in-batch negatives from batches of two examples
EXAMPLES_A_BATCH = 2


def cocktail_weights(losses: Sequence[float], temperature: float = 5.0) -> list[float]:
    """LM-Cocktail's weights: ``softmax(-loss / temperature)`` over the models (arXiv:2311.13534).

    Args:
        losses: Loss of each model on the same examples.
        temperature: The larger, the more equal the weights.

    Returns:
        Weights of sum 1.
    """
    scaled = -np.asarray(losses, np.float64) / temperature
    powers = np.exp(scaled - scaled.max())
    return [float(weight) for weight in powers / powers.sum()]


def given_weights(weights: Sequence[float], models: int) -> list[float]:
    """Check a user's weights and scale them to sum 1.

    Raises:
        UsageError: Another number of weights than models, a negative one, or none above 0.
    """
    if len(weights) != models:
        raise UsageError(f"{len(weights)} weights for {models} models; give one for each (with a share: but the first)")
    if any(not np.isfinite(weight) or weight < 0 for weight in weights):
        raise UsageError(f"weights must be numbers of at least 0, got {list(weights)}")
    total = sum(weights)
    if total <= 0:
        raise UsageError("all weights are 0; at least one must be above 0")
    return [weight / total for weight in weights]


def example_loss(
    encoder: Encoder, examples: Sequence[Record], *, temperature: float = 0.05, negatives: int = 7
) -> float:
    """The contrastive loss of a model on a few examples, as LM-Cocktail takes it.

    Args:
        encoder: The model, with its own pooling, prompts and normalisation.
        examples: Records with positives and, to tell models apart well, hard negatives.
        temperature: Divides similarities (LM-Cocktail: 0.05).
        negatives: Negatives taken of each example, the first ones (LM-Cocktail: 7).

    Returns:
        InfoNCE, the mean over batches of two examples.

    Raises:
        DataError: No examples.
    """
    import torch

    from bge_cocktail.encoding import encode_queries_of
    from bge_cocktail.losses import batch_relevance, info_nce

    if not examples:
        raise DataError("no examples to find weights on")
    known = positives_by_query(examples)
    queries = torch.from_numpy(encode_queries_of(examples, encoder))
    batches = [
        batch_relevance(examples[start : start + EXAMPLES_A_BATCH], negatives=negatives, known_positives=known)
        for start in range(0, len(examples), EXAMPLES_A_BATCH)
    ]
    texts = list(dict.fromkeys(text for documents, _ in batches for text in documents))
    rows = {text: row for row, text in enumerate(texts)}
    embeddings = torch.from_numpy(encoder.encode_document(texts))
    losses = [
        info_nce(
            queries[number * EXAMPLES_A_BATCH : (number + 1) * EXAMPLES_A_BATCH],
            embeddings[[rows[text] for text in documents]],
            torch.from_numpy(relevance).clamp(max=1),  # every example counts the same here
            temperature,
        )
        for number, (documents, relevance) in enumerate(batches)
    ]
    return float(torch.stack(losses).mean())
