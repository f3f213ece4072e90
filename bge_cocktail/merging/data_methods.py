"""The merge methods that measure each model on examples (Fisher, RegMean, RegMean++), and what they measure."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from bge_cocktail.core.progress import progress
from bge_cocktail.merging.checkpoints import Checkpoint
from bge_cocktail.merging.methods import Stack, merge_methods
from bge_cocktail.merging.objective import EncoderObjective, Features, put_tensors
from bge_cocktail.merging.plan import Plan
from bge_cocktail.merging.tensors import Floats, Key, header_bytes, read_header
from bge_cocktail.models.layers import EMBEDDINGS, layer_of

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


@merge_methods("regmean++", data="regmean++", normalises="always", known_weights=True)
def regmean_of_merged_inputs(stack: Stack, *, shrinkage: float) -> Iterator[Floats]:
    """RegMean, where the inputs of a layer come out of the layers that are merged before it (arXiv:2508.03121)."""
    yield from regmean(stack, shrinkage=shrinkage)


Numbers = dict[Key, "torch.Tensor"]


class Measured(Protocol):
    """Models that are loaded in turns and run on examples."""

    @property
    def scratch(self) -> Path:
        """A folder for files."""
        ...

    @property
    def model(self) -> torch.nn.Module:
        """One loaded model of the form of all."""
        ...

    @property
    def parameters(self) -> dict[Key, torch.Tensor]:
        """The loaded model's parameters by tensor."""
        ...

    def place(self, row: int) -> Any:
        """Put the weights of one of the models into the loaded one."""
        ...

    def run(self, row: int) -> None:
        """Run the loaded model on the examples that model `row` is measured on."""
        ...


def collect_statistics(plan: Plan, objective: Measured, what: str) -> Plan:
    """Measure every model on the examples.

    The numbers go to files in the scratch folder: Fisher's are as large as the model.

    Args:
        plan: The merge; with its weights, for ``regmean++``.
        objective: Holds the loaded model and the examples.
        what: ``fisher``, ``regmean`` or ``regmean++``.

    Returns:
        The merge with its statistics.
    """
    folder = Path(tempfile.mkdtemp(dir=objective.scratch))
    if what == "regmean++":
        return _measured_in_turn(plan, objective, folder)
    measured = []
    with progress(f"measuring for {what}", len(plan.checkpoints)) as advance:
        for row, checkpoint in enumerate(plan.checkpoints):
            objective.place(row)
            if what == "fisher":
                numbers = squared_gradients(cast(EncoderObjective, objective), row)
            else:
                numbers = input_products(objective, row, list(objective.parameters))
            measured.append(_store(checkpoint.name, numbers, folder / f"{row}.safetensors"))
            advance(1)
    return replace(plan, statistics=tuple(measured))


def _measured_in_turn(plan: Plan, objective: Measured, folder: Path) -> Plan:
    """Return the merge with inner products of inputs that pass through merged layers first, each model's own last."""
    groups: dict[float, list[Key]] = {}
    for key in objective.parameters:
        groups.setdefault(_place(key), []).append(key)
    measured = tuple(Checkpoint(checkpoint.name, folder, {}, {}) for checkpoint in plan.checkpoints)
    merged: dict[Key, Floats] = {}
    with progress("measuring for regmean++", len(groups)) as advance:
        for number, place in enumerate(sorted(groups)):
            found = []
            for row, before in enumerate(measured):
                objective.place(row)
                put_tensors(objective.parameters, ((key, [values]) for key, values in merged.items()))
                numbers = input_products(objective, row, groups[place])
                new = _store(before.name, numbers, folder / f"{row}-{number}.safetensors")
                tensors, sources = {**before.tensors, **new.tensors}, (*before.sources, *new.sources)
                found.append(replace(before, tensors=tensors, sources=sources))
            measured = tuple(found)
            plan = replace(plan, statistics=measured)
            merged |= {key: np.concatenate(list(plan.tiles(key))) for key in groups[place]}
            advance(1)
    return plan


def _place(key: Key) -> float:
    """Return where in the forward pass a tensor stands: embeddings first, heads and last norms last."""
    module, name = key
    layer = layer_of(name)
    if module == 0 and layer is not None:
        return layer
    return -1 if module == 0 and EMBEDDINGS.search(name) else math.inf


def squared_gradients(objective: EncoderObjective, row: int) -> Numbers:
    """Mean squared gradient of the loss over batches of two examples: the diagonal of the Fisher information.

    Args:
        objective: Holds the loaded model.
        row: Whose examples are looked at.

    Returns:
        One number for each parameter, shaped as it.
    """
    import torch

    names = objective.parameter_names
    parameters = dict(objective.model.named_parameters())
    wanted = {key: parameters[name] for key, name in names.items() if name in parameters}
    total = {key: torch.zeros_like(parameter) for key, parameter in wanted.items()}
    count = 0
    for loss in objective.batch_losses(row):
        objective.model.zero_grad()
        loss.backward()
        count += 1
        for key, parameter in wanted.items():
            if parameter.grad is not None:
                total[key] += parameter.grad.float() ** 2
    objective.model.zero_grad()
    return {key: value / count for key, value in total.items()}


def input_products(objective: Measured, row: int, keys: Iterable[Key]) -> Numbers:
    """Inner products of the inputs of linear layers over all tokens of the examples, padding left out.

    Args:
        objective: Holds the loaded model.
        row: Whose examples are looked at.
        keys: The tensors to look at; those that are no linear layer's weight are passed over.

    Returns:
        For each layer's weight, shape (outputs, inputs), an array of shape (inputs, inputs).
    """
    import torch

    by_place = {objective.parameters[key].data_ptr(): key for key in keys}
    linear = [layer for layer in objective.model.modules() if isinstance(layer, torch.nn.Linear)]
    layers = {layer: by_place[place] for layer in linear if (place := layer.weight.data_ptr()) in by_place}
    total: Numbers = {}
    mask: list[torch.Tensor] = []

    def see_mask(_model: Any, inputs: tuple[Features]) -> None:
        mask[:] = [inputs[0]["attention_mask"].bool()] if "attention_mask" in inputs[0] else []

    def collect(layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        values = inputs[0].detach()
        if mask and values.shape[:-1] == mask[0].shape:
            values = values[mask[0]]
        values = values.reshape(-1, values.shape[-1]).float()
        product, key = values.T @ values, layers[layer]
        total[key] = total[key] + product if key in total else product

    handles = [layer.register_forward_pre_hook(collect) for layer in layers]
    handles.append(objective.model.register_forward_pre_hook(see_mask))
    try:
        with torch.no_grad():
            objective.run(row)
    finally:
        for handle in handles:
            handle.remove()
    return total


def _store(name: str, numbers: Numbers, path: Path) -> Checkpoint:
    rows = {f"{key[0]} {key[1]}": key for key in numbers}
    with open(path, "wb") as file:
        file.write(header_bytes([(row, "F32", tuple(numbers[key].shape)) for row, key in rows.items()]))
        for key in rows.values():
            file.write(numbers[key].cpu().numpy().tobytes())
    tensors = read_header(path).tensors
    sources = tuple(tensor.file for tensor in list(tensors.values())[:1])
    return Checkpoint(name, path.parent, {}, {key: tensors[row] for row, key in rows.items()}, sources=sources)
