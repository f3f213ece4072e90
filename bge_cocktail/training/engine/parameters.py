"""Which parameters learn, how fast, and what is put into a model for training; what is refused before it begins."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_cocktail.core.devices import choose_device, resolve_precision
from bge_cocktail.core.errors import CocktailError, DataError, UsageError, how_to_install, nearest
from bge_cocktail.core.outputs import read_object
from bge_cocktail.models.layers import EMBEDDINGS, LAYER, POSITIONS, layer_count, layer_of
from bge_cocktail.models.layout import check_length, transformer_folder
from bge_cocktail.options import CommonTrainOptions

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

REPORTERS = ("tensorboard", "mlflow", "trackio", "wandb")


def common_problems(base: Path, options: CommonTrainOptions) -> Iterator[str]:
    """Options that the device or the base can't follow, or that don't go together.

    Args:
        base: The model to tune.
        options: How to tune.
    """
    try:
        check_length(base, options.max_length)
    except UsageError as error:
        yield str(error)
    try:
        _check_device(options)
    except UsageError as error:
        yield str(error)
    yield from _words(options)
    yield from _lora(options)
    yield from _layers(base, options)
    yield from _tools(options)


def _check_device(options: CommonTrainOptions) -> None:
    device = choose_device(options.device)
    if device.startswith("cuda:") and device != "cuda:0":
        raise UsageError(
            f"training takes the first GPU that it sees, not {device}; choose one with "
            f"CUDA_VISIBLE_DEVICES={device.removeprefix('cuda:')} and device auto"
        )
    resolve_precision(options.precision, device)
    if options.tf32 and not device.startswith("cuda"):
        raise UsageError(f"tf32 is an NVIDIA GPU's, this is {device}")


def _words(options: CommonTrainOptions) -> Iterator[str]:
    """Names that transformers knows."""
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    for name, value, kinds in (
        ("optimizer", options.optimizer, OptimizerNames),
        ("schedule", options.schedule, SchedulerType),
    ):
        known = [kind.value for kind in kinds]
        if value not in known:
            yield f"{name}: transformers has no '{value}'.{nearest(value, known)}"
    if options.schedule in [kind.value for kind in SchedulerType] and not _can_schedule(options.schedule):
        yield f"schedule {options.schedule} needs arguments of its own, which can't be given here"
    for tracker in options.report_to:
        if tracker not in REPORTERS:
            yield f"report_to: no '{tracker}'.{nearest(tracker, REPORTERS)}"
        elif not (find_spec(tracker) or (tracker == "tensorboard" and find_spec("tensorboardX"))):
            yield f"report_to: {tracker} is not installed; pip install {tracker}"


def _can_schedule(name: str) -> bool:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=10)
    except (ValueError, TypeError, AttributeError):
        return False
    return name != "reduce_lr_on_plateau"  # it wants a metric at every step


def _lora(options: CommonTrainOptions) -> Iterator[str]:
    if options.lora_alpha is not None and not options.lora:
        yield "lora_alpha goes with lora"
    if options.lora and options.reinit_layers:
        yield "reinit_layers starts layers afresh that lora would keep frozen; take one of them"
    if options.lora and (options.freeze_layers or options.freeze_embeddings):
        yield "lora freezes all of the base; leave freeze_layers and freeze_embeddings out"


def _layers(base: Path, options: CommonTrainOptions) -> Iterator[str]:
    config = read_object(transformer_folder(base) / "config.json")
    layers = next((config[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if key in config), None)
    if layers is not None and (isinstance(layers, bool) or not isinstance(layers, int)):
        raise DataError(f"{base}: config.json says {layers!r:.40} layers, which is no whole number")
    for name in ("freeze_layers", "reinit_layers"):
        if layers is not None and getattr(options, name) > layers:
            yield f"{name}={getattr(options, name)}: the model has {layers} layers"
    if layers is not None and options.freeze_layers + options.reinit_layers > layers:
        yield f"freeze_layers and reinit_layers share layers: the model has {layers}"


def _tools(options: CommonTrainOptions) -> Iterator[str]:
    if options.lora and not find_spec("peft"):
        yield f"lora needs peft; {how_to_install('lora')}"
    if options.compile and choose_device(options.device) == "cpu" and not (shutil.which("c++") or shutil.which("g++")):
        yield "compile needs a C++ compiler on the CPU, and there is none"


def prepare_parameters(model: Any, options: CommonTrainOptions, *, dense: int = 0) -> Callable[[], object]:
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


def _freeze(model: Any, options: CommonTrainOptions) -> None:
    asked = {name for name in ("freeze_embeddings", "freeze_layers", "fixed_positions") if getattr(options, name)}
    frozen: set[str] = set()
    for name, parameter in model[0].auto_model.named_parameters():
        number = layer_of(name)
        reasons = {
            "freeze_embeddings": number is None and bool(EMBEDDINGS.search(name)),
            "freeze_layers": number is not None and number < options.freeze_layers,
            "fixed_positions": bool(POSITIONS.search(name)),
        }
        if held := {reason for reason, holds in reasons.items() if holds} & asked:
            frozen |= held
            parameter.requires_grad_(False)
    if missing := asked - frozen:
        raise UsageError(f"{', '.join(sorted(missing))}: the model has no parameters of that kind to keep")
    # a pooler learns nothing from embeddings that are pooled otherwise
    rest = [name for name, one in model.named_parameters() if one.requires_grad and ".pooler." not in name]
    if not rest:
        raise UsageError(f"{', '.join(sorted(asked))} leave nothing to train")


def learning_rates(model: Any, options: CommonTrainOptions) -> dict[str, float]:
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
            matched = LAYER.search(name)
            pattern = rf"\b{re.escape(matched[0])}" if matched else re.escape(name)
            rates[pattern] = options.learning_rate * options.layer_decay ** (layers - 1 - number)
        elif EMBEDDINGS.search(name):
            rates[rf"\b{re.escape(name)}$"] = options.learning_rate * options.layer_decay**layers
    return rates


def _nothing() -> None:
    """Without adapters there is nothing to merge."""


def _set_dropout(transformer: Any, rate: float) -> None:
    import torch

    changed = 0
    for module in transformer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
            changed += 1
        # some attention computes its own from a number
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = rate
            changed += 1
    if not changed:
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


def _add_lora(transformer: Any, options: CommonTrainOptions) -> Callable[[], object]:
    """Put low-rank updates beside all linear layers, in place (arXiv:2106.09685)."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UsageError(f"lora needs peft; {how_to_install('lora')}") from None
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
