"""Which parameters learn, how fast, and what is put into a model for training and taken out again."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bge_cocktail.errors import CocktailError, UsageError
from bge_cocktail.options import Tuning

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# "encoder.layer.3." in BERT and its kin, "layers.3." in newer ones, "h.3." in GPT-2's
_LAYER = re.compile(r"(?:\b|_)(?:layer|layers|h|block)\.(\d+)\.")
_EMBEDDINGS = re.compile(r"\b(?:embeddings?|embed_tokens|wte|wpe|shared|tok_embeddings)\.")
_POSITIONS = re.compile(r"position_embeddings|embed_positions|\bwpe\.")


def layer_of(name: str) -> int | None:
    """The number of the layer that a parameter belongs to; None for embeddings and what follows the layers."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def is_layer(name: str) -> bool:
    """Whether a module's name is that of a layer, rather than of something in one."""
    found = _LAYER.search(name + ".")
    return found is not None and found.end() == len(name) + 1


def layer_count(names: list[str]) -> int:
    """How many layers the parameters make."""
    return 1 + max((number for number in map(layer_of, names) if number is not None), default=-1)


def prepare_parameters(model: Any, options: Tuning, *, dense: int = 0) -> Callable[[], object]:
    """Change a loaded model to what is trained: dropout, new layers, adapters, frozen parameters.

    Args:
        model: Of sentence-transformers; its first module holds a transformer.
        options: What is changed, and what stays as it is.
        dense: Dimensions of a linear projection that is added; 0: none.

    Returns:
        What merges adapters into the weights when training is done.

    Raises:
        UsageError: peft is asked for and isn't here, or what is to be kept or changed isn't there.
    """
    import torch

    transformer = model[0].auto_model
    finish: Callable[[], object] = _nothing
    if options.dropout is not None:
        _set_dropout(transformer, options.dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        _start_afresh(transformer, options.reinit_layers)
        if dense:
            _add_dense(model, dense)
        if options.lora:
            finish = _add_lora(transformer.base_model, options)
    _freeze(model, options)
    return finish


def _freeze(model: Any, options: Tuning) -> None:
    asked = {name for name in ("freeze_embeddings", "freeze_layers", "fixed_positions") if getattr(options, name)}
    found: set[str] = set()
    for name, parameter in model[0].auto_model.named_parameters():
        number = layer_of(name)
        reasons = {
            "freeze_embeddings": number is None and bool(_EMBEDDINGS.search(name)),
            "freeze_layers": number is not None and number < options.freeze_layers,
            "fixed_positions": bool(_POSITIONS.search(name)),
        }
        if held := {reason for reason, holds in reasons.items() if holds} & asked:
            found |= held
            parameter.requires_grad_(False)
    if missing := asked - found:
        raise UsageError(f"{', '.join(sorted(missing))}: the model has no parameters of that kind to keep")
    # a pooler learns nothing from embeddings that are pooled otherwise
    rest = [name for name, one in model.named_parameters() if one.requires_grad and ".pooler." not in name]
    if not rest:
        raise UsageError(f"{', '.join(sorted(asked))} leave nothing to train")


def learning_rates(model: Any, options: Tuning) -> dict[str, float]:
    """Learning rates of layers by a pattern of their names, where the rate falls from layer to layer.

    The last layer has the full rate, each one below `layer_decay` of the one above, the embeddings come last
    (ULMFiT, arXiv:1801.06146; with a constant factor as in ELECTRA, arXiv:2003.10555).
    """
    if options.layer_decay == 1:
        return {}
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    layers = layer_count([name for name, _ in model.named_parameters()])
    rates: dict[str, float] = {}
    for name in names:
        number = layer_of(name)
        if number is not None:
            matched = _LAYER.search(name)
            pattern = rf"\b{re.escape(matched[0])}" if matched else re.escape(name)
            rates[pattern] = options.learning_rate * options.layer_decay ** (layers - 1 - number)
        elif _EMBEDDINGS.search(name):
            rates[rf"\b{re.escape(name)}$"] = options.learning_rate * options.layer_decay**layers
    return rates


def _nothing() -> None:
    """Without adapters there is nothing to merge."""


def _set_dropout(transformer: Any, rate: float) -> None:
    import torch

    found = 0
    for module in transformer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
            found += 1
        # some attention computes its own from a number
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = rate
            found += 1
    if not found:
        raise UsageError(f"dropout={rate:g}: the model has no dropout to change")


def _start_afresh(transformer: Any, layers: int) -> None:
    """Initialise the last layers as the model's own code does (Zhang et al., arXiv:2006.05987)."""
    names = [name for name, _ in transformer.named_parameters()]
    first = layer_count(names) - layers
    for name, module in transformer.named_modules():
        number = layer_of(name + ".")
        if layers and number is not None and number >= first:
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = False
            module._is_hf_initialized = False
            transformer._init_weights(module)


def _add_dense(model: SentenceTransformer, dimensions: int) -> None:
    """A linear projection after pooling, its rows orthonormal, so that similarities begin close to what they were."""
    import torch
    from sentence_transformers.models import Dense, Normalize

    wide = model.get_embedding_dimension()
    dense = Dense(wide, dimensions, bias=False, activation_function=torch.nn.Identity())
    torch.nn.init.orthogonal_(dense.linear.weight)
    place = len(model) - 1 if isinstance(model[-1], Normalize) else len(model)
    model.insert(place, dense.to(model.device))


def _add_lora(transformer: Any, options: Tuning) -> Callable[[], object]:
    """Put low-rank updates beside all linear layers, in place (arXiv:2106.09685)."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UsageError("lora needs peft: pip install 'bge-cocktail[lora]'") from None
    config = LoraConfig(
        r=options.lora,
        lora_alpha=options.lora_alpha or 2 * options.lora,
        lora_dropout=0.0,
        target_modules="all-linear",
        bias="none",
    )
    try:
        finish: Callable[[], object] = get_peft_model(transformer, config).merge_and_unload
    except ValueError as error:
        raise CocktailError(f"lora: {error}") from error
    return finish
