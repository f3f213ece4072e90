"""The losses against sentence-transformers' and FlagEmbedding's, and against formulas written out."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_cocktail.data.record import Record
from bge_cocktail.losses.contrastive import DIRECTIONS, info_nce
from bge_cocktail.losses.total import Embedded, LossSettings, batch_relevance, batch_targets, losses, total_loss


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


def batch(seed: int = 0, queries: int = 4, negatives: int = 2, *, scored: bool = True) -> Embedded:
    """Queries with documents of their own, columns in the order of the peers: all positives, then the negatives."""
    documents = queries * (1 + negatives)
    relevance = torch.zeros(queries, documents, dtype=torch.float64)
    relevance[range(queries), range(queries)] = 1
    own = torch.arange(documents).reshape(1 + negatives, queries).T
    generator = torch.Generator().manual_seed(seed + 99)
    scores = torch.randn(queries, 1 + negatives, generator=generator, dtype=torch.float64) * 3
    if not scored:
        scores[:] = torch.nan
    return Embedded(unit(seed, queries), unit(seed + 1, documents), relevance, own, scores)


def columns(one: Embedded) -> list[torch.Tensor]:
    """As sentence-transformers' losses take them."""
    return [one.queries, *one.documents.split(len(one.queries))]


def assert_alike(one: Embedded, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The same loss and the same gradients."""
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    inputs = [one.queries, one.documents]
    for mine, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        assert torch.allclose(mine, other, atol=1e-9)


@pytest.mark.parametrize(
    ("directions", "partition"),
    [
        (DIRECTIONS[:1], "joint"),
        (("query-document", "document-query"), "apart"),
        (("query-document", "document-query"), "joint"),
        (("query-document", "query-query"), "joint"),
        (DIRECTIONS, "joint"),
    ],
)
@pytest.mark.parametrize("negatives", [0, 2])
def test_directions_equal_sentence_transformers(directions: tuple[str, ...], partition: str, negatives: int) -> None:
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from sentence_transformers.util import dot_score

    one = batch(3, negatives=negatives)
    names = {"query": "query", "document": "doc"}
    theirs = MultipleNegativesRankingLoss(
        torch.nn.Identity(),
        scale=20.0,
        similarity_fct=dot_score,
        directions=tuple("_to_".join(names[part] for part in direction.split("-")) for direction in directions),
        partition_mode="joint" if partition == "joint" else "per_direction",
    ).compute_loss_from_embeddings(columns(one), None)
    settings = LossSettings(temperature=0.05, directions=directions, partition=partition)
    assert_alike(one, losses["info-nce"](one, settings), theirs)


def test_label_smoothing_equals_torchs() -> None:
    one = batch(4)
    logits = one.queries @ one.documents.T / 0.1
    theirs = torch.nn.functional.cross_entropy(logits, torch.arange(4), label_smoothing=0.2)
    assert_alike(one, losses["info-nce"](one, LossSettings(temperature=0.1, label_smoothing=0.2)), theirs)


def test_a_margin_leaves_out_what_is_too_similar() -> None:
    """By the formula, over loops; the record's own negatives stay."""
    one, temperature, margin = batch(5, queries=6), 0.1, -0.2
    similarities = (one.queries @ one.documents.T).detach().numpy()
    total, masked = 0.0, 0
    for row in range(6):
        kept = []
        for column in range(18):
            own = column % 6 == row
            if own or similarities[row, column] <= similarities[row, row] + margin:
                kept.append(math.exp(similarities[row, column] / temperature))
            else:
                masked += 1
        total -= math.log(math.exp(similarities[row, row] / temperature) / sum(kept))
    found = losses["info-nce"](one, LossSettings(temperature=temperature, mask_margin=margin))
    assert masked > 5
    assert found.item() == pytest.approx(total / 6, abs=1e-9)
    everything = LossSettings(temperature=temperature, mask_margin=margin, directions=DIRECTIONS)
    plain = LossSettings(temperature=temperature, directions=DIRECTIONS)
    assert losses["info-nce"](one, everything) < losses["info-nce"](one, plain)


def test_kl_equals_sentence_transformers_and_flagembeddings_formula() -> None:
    from sentence_transformers.losses import DistillKLDivLoss

    one = batch(6)
    teacher = DistillKLDivLoss(torch.nn.Identity())
    theirs = teacher.compute_loss_from_embeddings(columns(one), one.scores)
    ours = losses["kl"](one, LossSettings(temperature=1.0))
    assert_alike(one, ours, theirs)
    # FlagEmbedding's is a cross entropy: more by the teacher's entropy, with the same gradient
    student = torch.einsum("qd,qgd->qg", one.queries, one.documents[one.own])
    targets = one.scores.softmax(dim=1)
    flag = -(student.log_softmax(dim=1) * targets).sum(dim=1).mean()
    entropy = -(targets * targets.log()).sum(dim=1).mean()
    assert_alike(one, losses["kl"](one, LossSettings(temperature=1.0)), flag - entropy)


def test_m3_equals_flagembeddings_formula() -> None:
    one, temperature = batch(7), 0.05
    theirs = torch.zeros((), dtype=torch.float64)
    logits = one.queries @ one.documents.T / temperature
    targets = one.scores.softmax(dim=1)
    mask = torch.zeros_like(logits)
    for place in range(3):
        column = one.own[:, place]
        theirs = (
            theirs
            + (targets[:, place] * torch.nn.functional.cross_entropy(logits + mask, column, reduction="none")).mean()
        )
        mask = torch.scatter(mask, -1, column[:, None], torch.finfo(logits.dtype).min)
    assert_alike(one, losses["m3"](one, LossSettings(temperature=temperature)), theirs)


def test_margin_mse_equals_sentence_transformers() -> None:
    from sentence_transformers.losses import MarginMSELoss

    one = batch(8)
    theirs = MarginMSELoss(torch.nn.Identity()).compute_loss_from_embeddings(columns(one), one.scores)
    assert_alike(one, losses["margin-mse"](one, LossSettings(temperature=1.0)), theirs)


@pytest.mark.parametrize("name", ["kl", "m3", "margin-mse"])
def test_records_without_scores_are_not_distilled(name: str) -> None:
    settings = LossSettings(temperature=0.1)
    whole, part = batch(9), batch(9)
    part.scores[2] = torch.nan
    kept = [0, 1, 3]
    few = Embedded(part.queries[kept], part.documents, part.relevance[kept], part.own[kept], part.scores[kept])
    assert losses[name](part, settings).item() == pytest.approx(losses[name](few, settings).item(), abs=1e-12)
    assert losses[name](part, settings).item() != pytest.approx(losses[name](whole, settings).item(), abs=1e-6)
    none = batch(9, scored=False)
    loss = losses[name](none, settings)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, none.queries)[0].abs().sum() == 0


@pytest.mark.parametrize("name", ["kl", "m3", "margin-mse"])
def test_fewer_documents_are_as_if_the_others_were_not_there(name: str) -> None:
    """A row that is filled up gives what the same row gives alone."""
    settings = LossSettings(temperature=0.1)
    one = batch(10)
    one.own[1, 2] = -1
    one.scores[1, 2] = torch.nan
    alone = Embedded(one.queries[1:2], one.documents, one.relevance[1:2], one.own[1:2, :2], one.scores[1:2, :2])
    filled = Embedded(one.queries[1:2], one.documents, one.relevance[1:2], one.own[1:2], one.scores[1:2])
    assert losses[name](filled, settings).item() == pytest.approx(losses[name](alone, settings).item(), abs=1e-12)


def test_cosent_and_angle_equal_their_formulas() -> None:
    one = batch(11, queries=5, negatives=1)
    rows, places = np.indices((5, 2)).reshape(2, -1)
    queries = one.queries[rows].detach().numpy()
    documents = one.documents[one.own[rows, places]].detach().numpy()
    scores = one.scores.numpy()[rows, places]

    def expected(similarities: np.ndarray, temperature: float) -> float:
        total = 1.0
        for i, k in itertools.product(range(10), repeat=2):
            if scores[i] > scores[k]:
                total += math.exp((similarities[k] - similarities[i]) / temperature)
        return math.log(total)

    cosines = (queries * documents).sum(axis=1)
    found = losses["cosent"](one, LossSettings(temperature=0.05))
    assert found.item() == pytest.approx(expected(cosines, 0.05), rel=1e-9)
    # AnglE: |sum of the parts of the quotient of the embeddings as complex numbers| (arXiv:2309.12871)
    a, b = (part[:, :4] + 1j * part[:, 4:] for part in (queries, documents))
    quotient = a * b.conj()  # both of unit norm
    angles = np.abs(quotient.real.sum(axis=1) + quotient.imag.sum(axis=1))
    found = losses["angle"](one, LossSettings(temperature=0.5))
    assert found.item() == pytest.approx(expected(angles, 0.5), rel=1e-6)


@pytest.mark.parametrize("name", sorted(losses))
def test_matryoshka_is_the_mean_over_first_dimensions(name: str) -> None:
    one = batch(12)
    settings = LossSettings(loss=(name,), temperature=0.1, matryoshka=(4, 2))
    parts = []
    for size in (8, 4, 2):
        cut = [torch.nn.functional.normalize(part[:, :size], dim=1) for part in (one.queries, one.documents)]
        parts.append(losses[name](Embedded(*cut, one.relevance, one.own, one.scores), LossSettings(temperature=0.1)))
    assert total_loss(one, settings)[name].item() == pytest.approx(sum(parts).item() / 3, rel=1e-9)


def test_matryoshka_is_sentence_transformers_over_the_number_of_sizes() -> None:
    """Theirs is the sum."""
    from sentence_transformers.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
    from sentence_transformers.util import dot_score

    one = batch(13, negatives=0)

    class Stored(torch.nn.Module):
        """Gives the queries, then the documents."""

        def get_embedding_dimension(self) -> int:
            return 8

        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"sentence_embedding": features["embedding"], "token_embeddings": features["embedding"][:, None]}

    model = Stored()
    peer = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, 10.0, dot_score), [8, 4, 2])

    # both from the same place before the norm, whose length theirs takes away once more
    def normalised() -> list[torch.Tensor]:
        return [torch.nn.functional.normalize(part, dim=1) for part in (one.queries, one.documents)]

    theirs = peer([{"embedding": part} for part in normalised()], None) / 3
    settings = LossSettings(temperature=0.1, matryoshka=(4, 2))
    again = Embedded(*normalised(), one.relevance, one.own, one.scores)
    assert_alike(one, total_loss(again, settings)["info-nce"], theirs)


def test_losses_add_up_by_their_weights() -> None:
    one = batch(14)
    found = total_loss(one, LossSettings(loss=("info-nce", "kl"), loss_weights=(2.0, 0.5), temperature=0.1))
    alone = LossSettings(temperature=0.1)
    assert found["info-nce"].item() == pytest.approx(2 * losses["info-nce"](one, alone).item())
    assert found["kl"].item() == pytest.approx(0.5 * losses["kl"](one, alone).item())


@pytest.mark.parametrize("name", sorted(losses))
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_queries_and_documents_does_not_matter(name: str, seed: int) -> None:
    one = batch(seed)
    generator = torch.Generator().manual_seed(seed)
    rows, order = torch.randperm(4, generator=generator), torch.randperm(12, generator=generator)
    place = order.argsort()
    other = Embedded(
        one.queries[rows], one.documents[order], one.relevance[rows][:, order], place[one.own[rows]], one.scores[rows]
    )
    every = LossSettings(temperature=0.1, directions=DIRECTIONS, mask_margin=0.1)
    assert losses[name](one, every).item() == pytest.approx(losses[name](other, every).item(), rel=1e-9)
    assert losses[name](one, every).item() > -1e-12


def test_a_batch_says_what_is_whose() -> None:
    records = [
        Record("q", ("a",), ("n", "n", "m"), pos_scores=(3.0,), neg_scores=(1.0, 9.0, 2.0)),
        Record("r", ("b",), (), in_batch_negatives=False),
    ]
    targets = batch_targets(records, negatives=3)
    assert targets.documents == ["a", "n", "m", "b"]
    assert targets.own.tolist() == [[0, 1, 2], [3, -1, -1]]
    assert targets.scores[0].tolist() == [3.0, 1.0, 2.0]
    assert np.isnan(targets.scores[1]).all()
    assert targets.relevance.tolist() == [[1, 0, 0, 0], [-1, -1, -1, 1]]
    alone = batch_targets(records, negatives=3, in_batch_negatives=False)
    assert alone.relevance[0].tolist() == [1, 0, 0, -1]


def test_parts_of_a_batch_do_not_see_each_other() -> None:
    records = [Record(f"q{row}", (f"p{row}",), (f"n{row}", "shared")) for row in range(4)]
    targets = batch_targets(records, negatives=2, blocks=2)
    for part in (records[:2], records[2:]):
        alone = batch_targets(part, negatives=2)
        rows = [records.index(record) for record in part]
        there = [targets.documents.index(text) for text in alone.documents]
        assert np.array_equal(targets.relevance[np.ix_(rows, there)], alone.relevance)
        elsewhere = [column for column in range(len(targets.documents)) if column not in there]
        assert (targets.relevance[np.ix_(rows, elsewhere)] == -1).all()


@pytest.mark.parametrize("at_once", [1, 3, 6, 100])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"directions": DIRECTIONS, "mask_margin": 0.05},
        {"directions": DIRECTIONS[:3], "partition": "apart", "label_smoothing": 0.1},
    ],
    ids=str,
)
def test_queries_a_few_at_once_give_the_same_loss(options: dict[str, Any], at_once: int) -> None:
    """Of large batches, not all similarities are in memory: values and gradients are those of the whole matrix."""
    generator = torch.Generator().manual_seed(3)
    records = [Record(f"q{row}", (f"p{row // 2}",), (f"n{row}", f"p{(row + 2) // 2}")) for row in range(7)]
    targets = batch_targets(records, negatives=2)
    relevance, own = torch.from_numpy(targets.relevance), torch.from_numpy(targets.own)
    found = []
    for limit in (None, at_once):
        queries, documents = (
            torch.randn(count, 5, generator=generator.manual_seed(count), requires_grad=True)
            for count in relevance.shape
        )
        units = [torch.nn.functional.normalize(one) for one in (queries, documents)]
        loss = info_nce(*units, relevance, 0.1, own=own, at_once=limit, **options)
        loss.backward()
        found.append((loss.detach(), queries.grad, documents.grad))
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
