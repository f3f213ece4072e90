"""Attention, dropout and lookups for training on a CPU: nothing is kept of what can be computed or drawn again.

PyTorch's fused attention has no dropout on a CPU: with it, every matrix of weights is written out, several times, and
kept for the backward pass, which is most of what a step holds. Without it, its backward pass takes three times as long
in bf16 (torch 2.13). Here the weights of a few texts are computed where the processor's cache holds them, and computed
again in the backward pass, as FlashAttention does (arXiv:2205.14135). Dropout is drawn again from the same seed. The
gradient of a lookup, which PyTorch makes as large as the vocabulary for every chunk, is added where it belongs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout, embedding, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

# weights of attention that are computed at once, measured on two cores: 2 MB of fp32
_AT_ONCE = 1 << 19
# tokens from which on PyTorch's fused attention is quicker in fp32
_LONG = 128
_FLOATS = (torch.float32, torch.bfloat16)


def fast_functions(device: str, compiled: bool, processes: int) -> AbstractContextManager[Any]:
    """Return what makes a forward pass and the backward pass after it quick and small.

    Args:
        device: Where it is computed; what is here is for ``cpu``.
        compiled: Whether torch compiles the model, which has ways of its own.
        processes: How many train together; the gradients that they share are those that autograd brings.
    """
    return CpuFunctions(lookups=processes == 1) if device == "cpu" and not compiled else nullcontext()


def recompute_layers(model: Any, functions: AbstractContextManager[Any]) -> None:
    """Have a model keep nothing inside of its layers for the backward pass, and compute it again (checkpointing).

    Args:
        model: sentence-transformers' or transformers'.
        functions: What is on in the forward pass, and must be when layers are computed again.
    """
    again = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), functions)}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=again)


class CpuFunctions(TorchFunctionMode):
    """Computes attention, dropout and lookups as above, where PyTorch's are slower or keep more.

    Args:
        lookups: Whether gradients of lookups are added to those of the weights without autograd.
    """

    def __init__(self, lookups: bool = True) -> None:
        super().__init__()
        self._ours = {scaled_dot_product_attention: _attention, dropout: _dropout}
        if lookups:
            self._ours[embedding] = _embedding

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._ours.get(func, func)(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return what PyTorch's function of the same arguments returns."""
    learnt = attn_mask is not None and attn_mask.requires_grad
    fused = query.dtype is torch.float32 and not dropout_p and query.shape[-2] > _LONG
    if query.dim() != 4 or query.dtype not in _FLOATS or learnt or fused or dropout_p >= 1:
        return scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if attn_mask is not None:
        attn_mask = attn_mask[(None,) * (4 - attn_mask.dim())].expand(len(query), -1, -1, -1)
    if enable_gqa:
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
    with torch.autocast("cpu", enabled=False):
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        attended: Tensor = _Attention.apply(query, key, value, attn_mask, dropout_p, scale)
    return attended


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Return what PyTorch's function of the same arguments returns, with another draw."""
    if not training or inplace or not 0 < p < 1 or input.dtype not in _FLOATS:
        return dropout(input, p, training, inplace)
    dropped: Tensor = _Dropout.apply(input, p)
    return dropped


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Return what PyTorch's function of the same arguments returns."""
    trained = weight.is_leaf and weight.requires_grad and torch.is_grad_enabled()
    if not trained or max_norm is not None or scale_grad_by_freq or sparse:
        return embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    found: Tensor = _Lookup.apply(input, weight, padding_idx)
    return found


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.weight, ctx.padding = weight, padding
        return embedding(tokens, weight)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        (tokens,) = ctx.saved_tensors
        places, rows = tokens.flatten(), gradients[0].flatten(0, -2)
        if ctx.padding is not None:
            rows = rows * (places != ctx.padding).unsqueeze(1)
        if ctx.weight.grad is None:
            ctx.weight.grad = torch.zeros_like(ctx.weight)
        ctx.weight.grad.index_add_(0, places, rows.to(ctx.weight.dtype))
        return None, None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.dropout, ctx.scale, ctx.seed = dropout_p, scale, _seed(dropout_p)
        generator = torch.Generator().manual_seed(ctx.seed)
        attended = _by_tokens(query, value.shape[-1])
        for some in _parts(query, key):
            weights = _weights(query[some], key[some], None if mask is None else mask[some], scale)
            if dropout_p:
                weights *= _kept(weights, dropout_p, generator)
            attended[some] = weights.to(value.dtype) @ value[some]
        return attended.mul_(1 / (1 - dropout_p)) if dropout_p else attended

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):
            return _attention_gradients(ctx, gradients[0])


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, p: float) -> Tensor:
        ctx.p, ctx.seed = p, _seed(p)
        return _dropped(values, p, ctx.seed)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _dropped(gradients[0], ctx.p, ctx.seed), None


def _attention_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, mask = ctx.saved_tensors
    of_query, of_key, of_value = (_by_tokens(one, one.shape[-1]) for one in (query, key, value))
    of_attended = (gradient * (1 / (1 - ctx.dropout))).to(value.dtype)
    generator = torch.Generator().manual_seed(ctx.seed)
    for some in _parts(query, key):
        weights = used = _weights(query[some], key[some], None if mask is None else mask[some], ctx.scale)
        of_weights = (of_attended[some] @ value[some].transpose(-1, -2)).float()
        if ctx.dropout:
            kept = _kept(weights, ctx.dropout, generator)
            used, of_weights = weights * kept, of_weights.mul_(kept)
        of_value[some] = used.to(value.dtype).transpose(-1, -2) @ of_attended[some]
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, torch.float32).mul_(ctx.scale)
        of_scores = of_scores.to(query.dtype)
        of_query[some] = of_scores @ key[some]
        of_key[some] = of_scores.transpose(-1, -2) @ query[some]
    return of_query, of_key, of_value, None, None, None


def _dropped(values: Tensor, p: float, seed: int) -> Tensor:
    return (values * _kept(values, p, torch.Generator().manual_seed(seed))).mul_(1 / (1 - p))


def _seed(p: float) -> int:
    """Return a seed from the generator of all dropout: the gradient cache sets that back, and finds the same."""
    return int(torch.randint(2**62, ())) if p else 0


def _kept(like: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Return which of a tensor's numbers dropout keeps: each with probability 1 - p.

    Eight numbers below 256 are taken of each draw of 64 bits. What lies between two of them decides which is the bound.
    """
    count, bound = like.numel(), int(256 * p)
    bound += bool(torch.rand((), generator=generator) < 256 * p - bound)
    drawn = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return drawn.view(torch.uint8)[:count].view(like.shape) >= bound


def _parts(query: Tensor, key: Tensor) -> list[slice]:
    """Return the texts by as many as are computed at once."""
    texts, heads, queries, _ = query.shape
    size = max(1, _AT_ONCE // max(1, heads * queries * key.shape[2]))
    return [slice(start, start + size) for start in range(0, texts, size)]


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return the weights of attention, in fp32. (texts, heads, queries, keys)"""
    scores = (query.float() * scale) @ key.float().transpose(-1, -2)
    least = torch.finfo(scores.dtype).min  # not infinity: tokens of padding may be told to look at none
    if mask is not None and mask.dtype is not torch.bool:
        scores = scores.add_(mask).clamp_(least)
    elif mask is not None and not mask.all():
        scores = scores.masked_fill_(~mask, least)
    return scores.softmax(-1)


def _by_tokens(like: Tensor, dimensions: int) -> Tensor:
    """Return an empty tensor of (texts, heads, tokens, dimensions), laid out by tokens as the model goes on."""
    texts, heads, tokens, _ = like.shape
    return like.new_empty(texts, tokens, heads, dimensions).transpose(1, 2)
