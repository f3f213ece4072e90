"""The loss against sentence-transformers', and against a formula written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_cocktail.losses import batch_relevance, info_nce
from bge_cocktail.records import Record


def unit(seed: int, rows: int, dimensions: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows_ = torch.randn(rows, dimensions, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(rows_, dim=1).requires_grad_()


@pytest.mark.parametrize("negatives", [0, 1, 3])
def test_equals_sentence_transformers(negatives: int) -> None:
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    queries, documents = unit(1, 5), unit(2, 5 * (1 + negatives))
    relevance = torch.zeros(5, 5 * (1 + negatives), dtype=torch.float64)
    relevance[range(5), range(5)] = 1
    normalize = torch.nn.functional.normalize  # the peer does it inside
    ours = info_nce(normalize(queries), normalize(documents), relevance, 0.05)
    gradients = torch.autograd.grad(ours, [queries, documents])
    peer = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=20.0)
    theirs = peer.compute_loss_from_embeddings([queries, *documents.split(5)], None)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    for one, two in zip(gradients, torch.autograd.grad(theirs, [queries, documents]), strict=True):
        assert torch.allclose(one, two, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.02, 1), st.lists(st.floats(0.1, 5), min_size=3, max_size=3))
def test_equals_the_formula(seed: int, temperature: float, weights: list[float]) -> None:
    queries, documents = unit(seed, 3).detach(), unit(seed + 1, 6).detach()
    relevance = torch.zeros(3, 6, dtype=torch.float64)
    for row, weight in enumerate(weights):
        relevance[row, row] = weight
    relevance[0, 4] = -1
    expected = 0.0
    for row, weight in enumerate(weights):
        powers = [
            math.exp(float(queries[row] @ documents[column]) / temperature)
            for column in range(6)
            if relevance[row, column] >= 0
        ]
        expected -= weight * math.log(math.exp(float(queries[row] @ documents[row]) / temperature) / sum(powers))
    found = info_nce(queries, documents, relevance, temperature)
    assert found.item() == pytest.approx(expected / sum(weights), rel=1e-6)


def test_relevance_knows_every_positive() -> None:
    records = [
        Record("q", ("a", "b"), ("n", "c"), weight=2.0),
        Record("r", ("c",), ("a",)),
        Record("Q ", ("d",), ()),
    ]
    documents, relevance = batch_relevance(records, negatives=2, known_positives={"q": {"a", "b", "d"}})
    assert documents == ["a", "n", "c", "d"]
    assert relevance.tolist() == [[2, 0, 0, -1], [0, 0, 1, 0], [-1, 0, 0, 1]]
    _, relevance = batch_relevance(records, negatives=0)
    assert relevance.shape == (3, 3)


def test_a_text_is_in_a_batch_once() -> None:
    records = [Record("q", ("same",), ("x", "x")), Record("r", ("other",), ("same",))]
    documents, relevance = batch_relevance(records, negatives=5)
    assert documents == ["same", "x", "other"]
    assert np.array_equal(relevance, [[1, 0, 0], [0, 0, 1]])
