"""The merge methods that look at what models do with examples (Fisher, RegMean), and what they need of each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bge_cocktail.core.progress import progress
from bge_cocktail.data.record import positives_by_query
from bge_cocktail.merging.checkpoints import Checkpoint
from bge_cocktail.merging.methods import Stack, merge_methods
from bge_cocktail.merging.objective import EXAMPLES_A_BATCH, EncoderObjective, Features
from bge_cocktail.merging.plan import Plan
from bge_cocktail.merging.tensors import Floats, Key, header_bytes, read_header

if TYPE_CHECKING:
    import torch

RIDGE = 1e-6


@merge_methods("fisher", data="fisher", normalises="always")
def fisher(stack: Stack) -> Iterator[Floats]:
    """Mean weighted, number by number, by how much the loss depends on it (arXiv:2111.09832).

    ``sum_i w_i F_i x_i / sum_i w_i F_i`` with F_i the mean squared gradient of the contrastive loss of model i on the
    examples (the diagonal of the Fisher information). Where it is 0 in all models, the weights alone decide.
    """
    count = len(stack.models)
    if not stack.statistics:
        yield from stack.combine(stack.weights)
        return
    for tile in stack.read([*stack.models, *stack.statistics]):
        values, weights = tile[:count], tile[count:].astype(np.float64) * stack.weights[:, None]
        total = weights.sum(axis=0)
        weights = np.where(total > 0, weights / np.where(total > 0, total, 1), stack.weights[:, None])
        # differences, so that equal models stay what they are
        moved = ((values[0] - values[1:]) * weights[1:]).sum(axis=0)
        yield (values[0] - moved).astype(np.float32)


@merge_methods("regmean", data="regmean", normalises="always")
def regmean(stack: Stack, *, shrinkage: float) -> Iterator[Floats]:
    """The matrix whose outputs are nearest to those of each model, on inputs from the examples (arXiv:2212.09849).

    For a linear layer with weights W_i, shape (outputs, inputs), and G_i the inner products of its inputs:
    ``(sum_i w_i W_i G_i) (sum_i w_i G_i)^-1``; what G_i has off its diagonal is multiplied by `shrinkage`. Other
    tensors are averaged. Holds whole matrices in memory.
    """
    if not stack.statistics:
        yield from stack.combine(stack.weights)
        return
    first = stack.whole(stack.models[0]).astype(np.float64)
    total = np.zeros((first.shape[1], first.shape[1]))
    moved = np.zeros_like(first)
    for tensor, inputs, weight in zip(stack.models, stack.statistics, stack.weights, strict=True):
        gram = stack.whole(inputs).astype(np.float64)
        gram = weight * (shrinkage * gram + (1 - shrinkage) * np.diag(np.diag(gram)))
        total += gram
        moved += (first - stack.whole(tensor)) @ gram
    # inputs that never vary leave directions without evidence; there the models are averaged by a hair
    total += RIDGE * max(np.trace(total) / len(total), 1e-12) * np.eye(len(total))
    yield (first - np.linalg.solve(total, moved.T).T).astype(np.float32).reshape(-1)


Numbers = dict[Key, "torch.Tensor"]


def collect_statistics(plan: Plan, objective: EncoderObjective, what: str) -> Plan:
    """Measure every model on the examples.

    The numbers go to files in the scratch folder: Fisher's are as large as the model.

    Args:
        plan: The merge.
        objective: Holds the loaded model and the examples.
        what: ``fisher`` or ``regmean``.

    Returns:
        The merge with its statistics.
    """
    folder = Path(tempfile.mkdtemp(dir=objective.scratch))
    gather: Callable[[EncoderObjective], Numbers] = {"fisher": squared_gradients, "regmean": input_products}[what]
    measured = []
    with progress(f"measuring for {what}", len(plan.checkpoints)) as advance:
        for row, checkpoint in enumerate(plan.checkpoints):
            objective.place(row)
            measured.append(_store(checkpoint.name, gather(objective), folder / f"{row}.safetensors"))
            advance(1)
    return replace(plan, statistics=tuple(measured))


def squared_gradients(objective: EncoderObjective) -> Numbers:
    """Mean squared gradient of the loss over batches of two examples: the diagonal of the Fisher information.

    Returns:
        One number for each parameter, shaped as it.
    """
    import torch

    names = objective.parameter_names
    parameters = dict(objective.model.named_parameters())
    wanted = {key: parameters[name] for key, name in names.items() if name in parameters}
    total = {key: torch.zeros_like(parameter) for key, parameter in wanted.items()}
    count = 0
    for loss in _losses(objective):
        objective.model.zero_grad()
        loss.backward()
        count += 1
        for key, parameter in wanted.items():
            if parameter.grad is not None:
                total[key] += parameter.grad.float() ** 2
    objective.model.zero_grad()
    return {key: value / count for key, value in total.items()}


def input_products(objective: EncoderObjective) -> Numbers:
    """Inner products of the inputs of each linear layer over all tokens of the examples, padding left out.

    Returns:
        For each layer's weight, shape (outputs, inputs), an array of shape (inputs, inputs).
    """
    import torch

    keys = {name: key for key, name in objective.parameter_names.items()}
    total: Numbers = {}
    with _linear_inputs(objective.model) as (seen, mask), torch.no_grad():

        def forward(features: Features) -> torch.Tensor:
            mask[:] = [features["attention_mask"].bool()] if "attention_mask" in features else []
            output: torch.Tensor = objective.model(features)["sentence_embedding"]
            for name, inputs in seen:
                key = keys.get(f"{name}.weight")
                if key is not None:
                    product = inputs.T @ inputs
                    total[key] = total[key] + product if key in total else product
            seen.clear()
            return output

        for _ in _losses(objective, forward):
            continue
    return total


@contextmanager
def _linear_inputs(model: Any) -> Iterator[tuple[list[tuple[str, torch.Tensor]], list[torch.Tensor]]]:
    """Collects what goes into each linear layer, as (name of the layer, inputs of shape (tokens, inputs))."""
    import torch

    seen: list[tuple[str, torch.Tensor]] = []
    mask: list[torch.Tensor] = []

    def hook(name: str) -> Callable[..., None]:
        def collect(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            values = inputs[0]
            if mask and values.shape[:-1] == mask[0].shape:
                values = values[mask[0]]
            seen.append((name, values.reshape(-1, values.shape[-1]).float()))

        return collect

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers]
    try:
        yield seen, mask
    finally:
        for handle in handles:
            handle.remove()


def _losses(
    objective: EncoderObjective, forward: Callable[[Features], torch.Tensor] | None = None
) -> Iterator[torch.Tensor]:
    examples = objective.needed_examples
    known = positives_by_query(examples)
    model = objective.model.eval()

    def plain(features: Features) -> torch.Tensor:
        output: torch.Tensor = model(features)["sentence_embedding"]
        return output

    for first in range(0, len(examples), EXAMPLES_A_BATCH):
        yield objective.batch_loss(examples[first : first + EXAMPLES_A_BATCH], known, forward or plain)


def _store(name: str, numbers: Numbers, path: Path) -> Checkpoint:
    rows = {f"{key[0]} {key[1]}": key for key in numbers}
    with open(path, "wb") as file:
        file.write(header_bytes([(row, "F32", tuple(numbers[key].shape)) for row, key in rows.items()]))
        for key in rows.values():
            file.write(numbers[key].cpu().numpy().tobytes())
    tensors = read_header(path).tensors
    sources = tuple(tensor.file for tensor in list(tensors.values())[:1])
    return Checkpoint(name, path.parent, {}, {key: tensors[row] for row, key in rows.items()}, sources=sources)
