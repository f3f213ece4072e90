"""Packed batches: the tokens of several texts as one stream, in which each text attends to itself alone.

Nothing is computed for padding, and attention takes the kernels that a mask of padding would keep it from. Where these
are (CUDA, half precision), it is FlashAttention over texts of any length; elsewhere texts are padded for attention
alone. Works with the architectures of transformers whose attention is an interface: BERT, RoBERTa, XLM-R, DistilBERT,
ModernBERT, Qwen and others; not with MPNet's, DeBERTa's and T5's, whose scores depend on distances by layers of their
own.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from bge_cocktail.core.errors import UsageError
from bge_cocktail.models.tokens import Features, Packer, tokenise
from bge_cocktail.options.base import Packed

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)
_NAME = "packed"
# what attention has to be told; transformers hands it on to each layer
_BOUNDS = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "position_ids"}
_HALF = (torch.float16, torch.bfloat16)
# of unit embeddings in fp32: what another order of the same sums leaves between them
_EQUAL = 1e-4
_PROBES = ("a", "two words or three, of which the tokenizer knows some", "a text. " * 9)


def packer(model: SentenceTransformer, packed: Packed, precision: str, *, compiled: bool = False) -> Packer | None:
    """Return what packs texts into a batch for a model, which from then on reads packed and padded batches.

    Args:
        model: On its device, in fp32.
        packed: ``auto`` packs where it is known to win: on a CUDA device in half precision.
        precision: That it will compute in.
        compiled: Whether torch compiles it: each length of a stream would be compiled anew.

    Returns:
        None where batches are padded.

    Raises:
        UsageError: ``on``, and the model can't read packed batches.
    """
    wins = model.device.type == "cuda" and precision in ("bf16", "fp16") and not compiled
    if packed == "off" or (packed == "auto" and not wins):
        return None
    why_not = "torch.compile would compile each length anew" if compiled else _unfit(model)
    if why_not is None:
        first_position = _first_position(model)
        before = _register(model)
        if _equal_to_padded(model, first_position):
            return lambda texts, places: texts.packed(places, first_position)
        model[0].auto_model.set_attn_implementation(before)
        why_not = "packed texts get other embeddings than padded ones"
    if packed == "on":
        raise UsageError(f"packed=on: {why_not}")
    log.info("batches are padded, not packed: %s", why_not)
    return None


def _unfit(model: SentenceTransformer) -> str | None:
    """Return what in a model's making keeps it from packed batches."""
    first = model[0]
    transformer = getattr(first, "auto_model", None)
    if transformer is None or not getattr(transformer, "is_backend_compatible", lambda: False)():
        return "the attention of this architecture can't be told where texts end"
    if getattr(first, "transformer_task", "") != "feature-extraction":
        return "the head of this architecture reads the first token of each row"
    if transformer.config._attn_implementation not in ("sdpa", _NAME):
        return f"attention is computed by '{transformer.config._attn_implementation}'"
    kinds = {type(module).__name__ for module in list(model)[1:]}
    if kinds and "Pooling" not in kinds:
        return "it has no Pooling module, which tells texts apart"
    return None


def _first_position(model: SentenceTransformer) -> int:
    """Return the position of a text's first token: RoBERTa's and its kin's tables begin with that of padding."""
    for module in model[0].auto_model.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            return padding + 1
    return 0


def _register(model: SentenceTransformer) -> str:
    """Have a model compute attention by `_attention`; return what it had."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, _mask)
    first = model[0]
    before: str = first.auto_model.config._attn_implementation
    first.auto_model.set_attn_implementation(_NAME)
    if first.model_forward_params is not None:
        first.model_forward_params |= _BOUNDS
    return before


def _equal_to_padded(model: SentenceTransformer, first_position: int) -> bool:
    """Return whether texts get the same embeddings packed as padded."""
    texts = tokenise(model, _PROBES)
    if texts is None:
        return False
    places = list(range(len(_PROBES)))
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(model.device.type, enabled=False):
            found = [_embedded(model, one) for one in (texts.padded(places), texts.packed(places, first_position))]
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        log.debug("packed texts can't be read: %s", error)
        return False
    finally:
        model.train(training)
    return found[0].shape == found[1].shape and bool((found[0] - found[1]).abs().max() < _EQUAL)


def _embedded(model: SentenceTransformer, features: Features) -> Tensor:
    from sentence_transformers.util import batch_to_device

    output = model(batch_to_device(features, model.device))
    vectors: Tensor = output["sentence_embedding"] if "sentence_embedding" in output else output["scores"]
    return nn.functional.normalize(vectors.float(), dim=1)


def _mask(*given: Any, attention_mask: Tensor | None = None, **more: Any) -> Tensor | None:
    """Return the mask of padded texts; packed ones, which have none, are told apart in attention."""
    from transformers.masking_utils import sdpa_mask

    if attention_mask is None:
        return None
    mask: Tensor | None = sdpa_mask(*given, attention_mask=attention_mask, **more)
    return mask


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Compute attention as transformers asks for it: of packed texts if it is told where they end, else of padded ones.

    Args:
        module: The layer.
        query: Shape (1, heads, tokens, dimensions).
        key: The same, perhaps of fewer heads, each of which several queries share.
        value: As `key`.
        attention_mask: Of padded texts.
        scaling: Of the products.
        dropout: Of the weights.
        is_causal: Whether tokens see what is before them alone; else the module says it.
        sliding_window: Tokens see those that are less than so many away.
        cu_seq_lens_q: Where texts begin and end, shape (texts + 1,).
        max_length_q: Tokens of the longest text.
        **more: For attention of padded texts.

    Returns:
        Shape (1, tokens, heads, dimensions).
    """
    if cu_seq_lens_q is None or max_length_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        given = {"scaling": scaling, "dropout": dropout, "is_causal": is_causal, "sliding_window": sliding_window}
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **given, **more
        )
        return attended
    if more.get("position_bias") is not None or more.get("softcap") is not None:
        raise ValueError("scores that depend on distances, or are capped, have no packed form")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    window = None if sliding_window is None or sliding_window > max_length_q else sliding_window
    streams = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    if query.is_cuda and query.dtype in _HALF and not dropout:
        attended_stream = _flash(*streams, cu_seq_lens_q, max_length_q, scaling, causal, window)
    elif query.is_cuda and query.dtype in _HALF and window is None:
        attended_stream = _flash_with_dropout(*streams, cu_seq_lens_q, max_length_q, scaling, causal, dropout)
    else:
        attended_stream = _by_text(*streams, cu_seq_lens_q, max_length_q, scaling, causal, window, dropout)
    return attended_stream[None], None


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    longest: int,
    scale: float | None,
    causal: bool,
    window: int | None,
) -> Tensor:
    """FlashAttention over streams of texts of any length. (tokens, heads, dimensions)"""
    from torch.nn.attention.varlen import varlen_attn

    reach = -1 if window is None else window - 1
    attended: Tensor = varlen_attn(
        *(query.contiguous(), key.contiguous(), value.contiguous()),
        *(bounds, bounds, longest, longest),
        scale=scale,
        window_size=(reach, 0 if causal else reach),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return attended


def _flash_with_dropout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    longest: int,
    scale: float | None,
    causal: bool,
    dropout: float,
) -> Tensor:
    """The same with dropout, which PyTorch has for nested tensors. (tokens, heads, dimensions)"""
    groups = query.shape[1] // key.shape[1]
    queries, keys, values = (
        torch.nested.nested_tensor_from_jagged(one.contiguous(), bounds.long(), max_seqlen=longest).transpose(1, 2)
        for one in (query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))
    )
    attended = scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=causal, scale=scale)
    stream: Tensor = attended.transpose(1, 2).values()
    return stream


def _by_text(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    longest: int,
    scale: float | None,
    causal: bool,
    window: int | None,
    dropout: float,
) -> Tensor:
    """Attention of texts that are padded for it alone. (tokens, heads, dimensions)"""
    counts = bounds.diff().long()
    texts = len(counts)
    at = torch.arange(longest, device=query.device)
    used = at < counts[:, None]
    rows = used.flatten().nonzero()[:, 0]

    def by_text(stream: Tensor) -> Tensor:
        padded = stream.new_zeros(texts * longest, *stream.shape[1:]).index_copy(0, rows, stream)
        return padded.view(texts, longest, *stream.shape[1:]).transpose(1, 2)

    seen = used[:, None, None, :]
    distance = at[:, None] - at
    if causal:
        seen = seen & (distance >= 0)
    if window is not None:
        seen = seen & (distance.abs() < window)
    if causal or window is not None:
        # what stands for padding is dropped again, and must look at something: of nothing there is no softmax
        seen = seen | ~used[:, None, :, None]
    attended = scaled_dot_product_attention(
        by_text(query),
        by_text(key),
        by_text(value),
        attn_mask=None if int(counts.min()) == longest and not causal and window is None else seen,
        dropout_p=dropout,
        scale=scale,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return attended.transpose(1, 2).flatten(0, 1)[rows]
