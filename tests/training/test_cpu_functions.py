"""What trains on a CPU in place of PyTorch's functions: the same values and gradients, and dropout's law."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention

from bge_cocktail.training.engine.cpu_functions import CpuFunctions


def heads(*shape: int, seed: int = 0) -> list[Tensor]:
    """Queries, keys and values, laid out as models have them: (texts, heads, tokens, dimensions)."""
    texts, heads_, tokens, dimensions = shape
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(texts, tokens, heads_, dimensions, generator=generator).transpose(1, 2) for _ in range(3)]
    return [one.requires_grad_() for one in made]


def padded(texts: int, tokens: int) -> Tensor:
    """The mask of texts of falling lengths. (texts, 1, 1, tokens)"""
    return (torch.arange(tokens) < torch.arange(tokens, tokens - texts, -1)[:, None])[:, None, None]


MASKS = {
    "none": None,
    "bool": padded(3, 7).expand(-1, 1, 7, -1),
    "float": torch.zeros(3, 1, 7, 7).masked_fill(~padded(3, 7), torch.finfo(torch.float32).min),
    "of all": torch.ones(7, 7, dtype=torch.bool).triu(-2),
}


def both(given: list[Tensor], **more: object) -> list[list[Tensor]]:
    """What ours and PyTorch's give, and the gradients."""
    found = []
    for ours in (True, False):
        if ours:
            with CpuFunctions():
                attended = scaled_dot_product_attention(*given, **more)
        else:
            attended = scaled_dot_product_attention(*given, **more)
        weights = torch.arange(attended.numel()).view(attended.shape).to(attended.dtype).cos()
        found.append([attended, *torch.autograd.grad((attended * weights).sum(), given)])
    return found


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_attention_is_pytorchs(mask: str, precision: torch.dtype) -> None:
    given = [one.detach().to(precision).requires_grad_() for one in heads(3, 4, 7, 8)]
    near = 1e-6 if precision is torch.float32 else 0.03
    for mine, theirs in zip(*both(given, attn_mask=MASKS[mask]), strict=True):
        assert mine.dtype is precision
        assert torch.allclose(mine, theirs, atol=near, rtol=near)


@pytest.mark.parametrize("more", [{"is_causal": True}, {"scale": 0.3}])
def test_attention_has_pytorchs_options(more: dict[str, object]) -> None:
    for mine, theirs in zip(*both(heads(2, 3, 9, 4), **more), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_attention_of_many_queries_to_few_keys() -> None:
    query, key, value = heads(2, 4, 5, 8)
    given = [query, *(one[:, :2].detach().requires_grad_() for one in (key, value))]
    for mine, theirs in zip(*both(given, enable_gqa=True), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_texts_in_several_parts_are_each_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bge_cocktail.training.engine.cpu_functions._AT_ONCE", 2 * 4 * 7 * 7)
    for mine, theirs in zip(*both(heads(3, 4, 7, 8), attn_mask=MASKS["bool"]), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_tokens_that_look_at_nothing_give_numbers() -> None:
    given = heads(1, 2, 3, 4)
    with CpuFunctions():
        attended = scaled_dot_product_attention(*given, attn_mask=torch.zeros(1, 1, 3, 3, dtype=torch.bool))
    assert attended.isfinite().all()


def test_attention_with_dropout_has_the_gradient_of_what_it_kept() -> None:
    query, key, _ = heads(2, 3, 6, 8)
    weights = ((query @ key.transpose(-1, -2)) / 8**0.5).softmax(-1)
    # values of one 1 each read the weights out as they were used
    value = torch.eye(6).expand(2, 3, 6, 6).contiguous().requires_grad_()
    torch.manual_seed(1)
    with CpuFunctions():
        used = scaled_dot_product_attention(query, key, value, dropout_p=0.3)
    kept = (used / weights).detach()
    assert torch.allclose(kept[kept > 0.5], torch.tensor(1 / 0.7))
    assert 0.15 < (kept < 0.5).float().mean() < 0.45
    expected = torch.autograd.grad(((weights * kept) @ value).pow(2).sum(), [query, key, value])
    found = torch.autograd.grad(used.pow(2).sum(), [query, key, value])
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.77])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_dropout_drops_so_many_keeps_the_mean_and_repeats_by_its_seed(p: float, precision: torch.dtype) -> None:
    ones = torch.ones(1001, 997, dtype=precision, requires_grad=True)
    with CpuFunctions():
        torch.manual_seed(5)
        first, second = dropout(ones, p), dropout(ones, p)
        torch.manual_seed(5)
        again = dropout(ones, p)
        assert torch.equal(dropout(ones, p, training=False), ones)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    share = (first == 0).float().mean().item()
    assert abs(share - p) < 0.006  # a 256th between two bounds, and what a million draws differ by
    assert set(first.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).to(precision).item()}
    (gradient,) = torch.autograd.grad(first.sum(), [ones])
    assert torch.equal(gradient, first)


def test_the_share_that_dropout_drops_is_right_on_average() -> None:
    ones = torch.ones(100)
    torch.manual_seed(0)
    with CpuFunctions():
        dropped = torch.stack([dropout(ones, 0.1) for _ in range(4000)]) == 0
    # 400,000 draws: the standard error is 0.0005, and bounds of 25 or of 26 alone would be off by 0.0023 and 0.0016
    assert abs(dropped.float().mean().item() - 0.1) < 0.0014


def test_lookups_give_the_same_rows_and_gradients() -> None:
    words, other = torch.nn.Embedding(9, 4, padding_idx=0), torch.nn.Embedding(9, 4)
    chunks = [torch.tensor([[1, 2, 0], [3, 2, 5]]), torch.tensor([[2], [0]])]

    def found(ours: bool) -> list[Tensor]:
        words.zero_grad()
        other.zero_grad()
        with CpuFunctions(lookups=ours):
            rows = [words(chunk) + other(chunk) for chunk in chunks]
        torch.cat([one.flatten() for one in rows]).pow(2).sum().backward()
        return [*rows, words.weight.grad, other.weight.grad]

    mine, theirs = found(True), found(False)
    assert all(map(torch.allclose, mine, theirs))
    assert not mine[2][0].any()


def test_nothing_as_large_as_tokens_times_tokens_is_kept() -> None:
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    saved = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with saved, CpuFunctions():
        scaled_dot_product_attention(*heads(2, 3, 50, 4), dropout_p=0.1)
    assert {tuple(one.shape) for one in kept} == {(2, 3, 50, 4)}
