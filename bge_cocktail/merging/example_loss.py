"""The contrastive loss of a model on a few examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bge_cocktail.embed import embed
from bge_cocktail.encoding import Encoder, encode_queries_of
from bge_cocktail.errors import DataError
from bge_cocktail.losses import batch_relevance, info_nce
from bge_cocktail.records import Record, positives_by_query

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# LM-Cocktail's reference implementation takes in-batch negatives from batches of two examples
EXAMPLES_A_BATCH = 2
LM_COCKTAIL_LENGTH = 2048


def draw_negatives(examples: Sequence[Record], negatives: int, seed: int) -> list[Record]:
    """Examples with at most so many negatives each, drawn where there are more; the same for every model.

    Raises:
        DataError: No examples.
    """
    if not examples:
        raise DataError("no examples to find weights on")
    drawn = []
    for row, example in enumerate(examples):
        chosen = np.arange(len(example.neg))
        if len(chosen) > negatives:
            chosen = np.sort(np.random.default_rng([seed, row]).permutation(chosen)[:negatives])
        drawn.append(
            Record(
                example.query,
                example.pos,
                tuple(example.neg[number] for number in chosen),
                prompt=example.prompt,
                weight=1.0,  # every example counts the same here
            )
        )
    return drawn


def example_loss(encoder: Encoder, examples: Sequence[Record], *, temperature: float = 0.05) -> float:
    """The loss of a model with its own pooling, prompts and normalisation, as LM-Cocktail weighs models by it.

    Args:
        encoder: The model.
        examples: Records with positives and, to tell models apart well, hard negatives.
        temperature: Divides similarities (LM-Cocktail: 0.05).

    Returns:
        InfoNCE, the mean over batches of two examples.

    Raises:
        DataError: No examples.
    """
    import torch

    batches = _batches(examples)
    queries = torch.from_numpy(encode_queries_of(examples, encoder))
    texts = list(dict.fromkeys(text for documents, _ in batches for text in documents))
    rows = {text: row for row, text in enumerate(texts)}
    embeddings = torch.from_numpy(encoder.encode_document(texts))
    losses = [
        info_nce(
            queries[number * EXAMPLES_A_BATCH : (number + 1) * EXAMPLES_A_BATCH],
            embeddings[[rows[text] for text in documents]],
            torch.from_numpy(relevance),
            temperature,
        )
        for number, (documents, relevance) in enumerate(batches)
    ]
    return float(torch.stack(losses).mean())


def chance_loss(examples: Sequence[Record]) -> float:
    """The loss of a model for which all texts are alike: the mean logarithm of the number of candidates."""
    batches = _batches(examples)
    return float(np.mean([np.log((relevance >= 0).sum(axis=1)).mean() for _, relevance in batches]))


def lm_cocktail_loss(model: SentenceTransformer, examples: Sequence[Record], *, temperature: float = 0.05) -> float:
    """The loss as LM_Cocktail 0.0.4 computes it, for comparison with its numbers.

    CLS pooling whatever the model uses, no prompts, all texts of a batch as candidates, also those that are positives
    of the query or stand there twice.

    Args:
        model: A loaded model.
        examples: With their negatives drawn.
        temperature: Divides similarities.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling

    cls = Pooling(model[0].get_embedding_dimension(), pooling_mode="cls")
    like_it = SentenceTransformer(modules=[model[0], cls, Normalize()], device=str(model.device))
    kept, like_it.max_seq_length = model.max_seq_length, min(LM_COCKTAIL_LENGTH, model.tokenizer.model_max_length)
    documents = [[example.pos[0], *example.neg] for example in examples]
    texts = list(dict.fromkeys([example.query for example in examples] + [text for one in documents for text in one]))
    rows = {text: row for row, text in enumerate(texts)}
    embeddings = embed(like_it, texts, label="examples").astype(np.float64)
    model.max_seq_length = kept
    losses = []
    for first in range(0, len(examples), EXAMPLES_A_BATCH):
        batch = documents[first : first + EXAMPLES_A_BATCH]
        queries = embeddings[[rows[example.query] for example in examples[first : first + EXAMPLES_A_BATCH]]]
        similarities = queries @ embeddings[[rows[text] for one in batch for text in one]].T / temperature
        places = np.cumsum([0, *(len(one) for one in batch)])[:-1]
        largest = similarities.max(axis=1)
        total = largest + np.log(np.exp(similarities - largest[:, None]).sum(axis=1))
        losses.append(float(np.mean(total - similarities[range(len(batch)), places])))
    return float(np.mean(losses))


def _batches(examples: Sequence[Record]) -> list[tuple[list[str], np.ndarray]]:
    if not examples:
        raise DataError("no examples to find weights on")
    known = positives_by_query(examples)
    most = max(len(example.neg) for example in examples)
    return [
        batch_relevance(examples[first : first + EXAMPLES_A_BATCH], negatives=most, known_positives=known)
        for first in range(0, len(examples), EXAMPLES_A_BATCH)
    ]
