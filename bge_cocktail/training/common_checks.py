"""What can be known to go wrong in any tuning before it begins."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from bge_cocktail.devices import choose_device, resolve_precision
from bge_cocktail.errors import UsageError, nearest
from bge_cocktail.layout import check_length, read_object, transformer_folder
from bge_cocktail.options import Tuning

REPORTERS = ("tensorboard", "mlflow", "trackio", "wandb")


def problems_of_tuning(base: Path, options: Tuning) -> Iterator[str]:
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


def _check_device(options: Tuning) -> None:
    device = choose_device(options.device)
    if device.startswith("cuda:") and device != "cuda:0":
        raise UsageError(
            f"training takes the first GPU that it sees, not {device}; choose one with "
            f"CUDA_VISIBLE_DEVICES={device.removeprefix('cuda:')} and device auto"
        )
    resolve_precision(options.precision, device)
    if options.tf32 and not device.startswith("cuda"):
        raise UsageError(f"tf32 is an NVIDIA GPU's, this is {device}")


def _words(options: Tuning) -> Iterator[str]:
    """Names that transformers knows."""
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    for name, value, kinds in (
        ("optimizer", options.optimizer, OptimizerNames),
        ("schedule", options.schedule, SchedulerType),
    ):
        known = [one.value for one in kinds]
        if value not in known:
            yield f"{name}: transformers has no '{value}'.{nearest(value, known)}"
    if options.schedule in [one.value for one in SchedulerType] and not _can_schedule(options.schedule):
        yield f"schedule {options.schedule} needs arguments of its own, which can't be given here"
    for one in options.report_to:
        if one not in REPORTERS:
            yield f"report_to: no '{one}'.{nearest(one, REPORTERS)}"
        elif not (find_spec(one) or (one == "tensorboard" and find_spec("tensorboardX"))):
            yield f"report_to: {one} is not installed; pip install {one}"


def _can_schedule(name: str) -> bool:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=10)
    except (ValueError, TypeError, AttributeError):
        return False
    return name != "reduce_lr_on_plateau"  # it wants a metric at every step


def _lora(options: Tuning) -> Iterator[str]:
    if options.lora_alpha is not None and not options.lora:
        yield "lora_alpha goes with lora"
    if options.lora and options.reinit_layers:
        yield "reinit_layers starts layers afresh that lora would keep frozen; take one of them"
    if options.lora and (options.freeze_layers or options.freeze_embeddings):
        yield "lora freezes all of the base; leave freeze_layers and freeze_embeddings out"


def _layers(base: Path, options: Tuning) -> Iterator[str]:
    config = read_object(transformer_folder(base) / "config.json")
    layers = next((config[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if key in config), None)
    for name in ("freeze_layers", "reinit_layers"):
        if layers is not None and getattr(options, name) > layers:
            yield f"{name}={getattr(options, name)}: the model has {layers} layers"
    if layers is not None and options.freeze_layers + options.reinit_layers > layers:
        yield f"freeze_layers and reinit_layers share layers: the model has {layers}"


def _tools(options: Tuning) -> Iterator[str]:
    if options.lora and not find_spec("peft"):
        yield "lora needs peft: pip install 'bge-cocktail[lora]'"
    if options.compile and choose_device(options.device) == "cpu" and not (shutil.which("c++") or shutil.which("g++")):
        yield "compile needs a C++ compiler on the CPU, and there is none"
