"""A merge that is checked and ready: which numbers of which models give which numbers of the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, NoReturn

import numpy as np

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.core.registry import keyword_names, own_options
from bge_cocktail.merging.checkpoints import Checkpoint, fingerprint, hash_of
from bge_cocktail.merging.methods import TILE, Stack, merge_methods
from bge_cocktail.merging.tensors import FLOATS, Floats, Key, Tensor, count_of
from bge_cocktail.models.layers import layer_of, nearest_layer
from bge_cocktail.options import MergeOptions


@dataclass(frozen=True, slots=True)
class GroupWeights:
    """The weights of each tensor.

    Attributes:
        weights: Of tensors for which nothing else is said.
        patterns: By pattern of names; of several that match, the last counts.
        anchors: Weights at the first and the last layer, and between; empty where all layers weigh the same.
        layers: How many layers the models have.
    """

    weights: Sequence[float]
    patterns: Mapping[str, Sequence[float]]
    anchors: Sequence[Sequence[float]] = ()
    layers: int = 0

    def of(self, name: str) -> Sequence[float]:
        """Return the weights of a tensor, shape (models,)."""
        matching = [weights for pattern, weights in self.patterns.items() if fnmatchcase(name, pattern)]
        if matching:
            return matching[-1]
        if not self.anchors:
            return self.weights
        layer = nearest_layer(name, self.layers)
        place = layer / max(self.layers - 1, 1) * (len(self.anchors) - 1)
        columns = np.asarray(self.anchors, np.float64).T
        return [float(np.interp(place, range(len(self.anchors)), column)) for column in columns]


def group_weights(
    names: Iterable[str],
    weights: Sequence[float],
    patterns: Mapping[str, Sequence[float]],
    anchors: Sequence[Sequence[float]],
) -> GroupWeights:
    """Arrange the weights of all tensors.

    Args:
        names: Of all tensors.
        weights: Where nothing else is said.
        patterns: Weights by pattern of names.
        anchors: Weights from the first layer to the last.

    Raises:
        UsageError: A pattern that no tensor matches, or anchors without layers.
    """
    every = list(names)
    if not every:
        raise UsageError("no tensor is left to merge: `exclude` takes all of them from the first model")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise UsageError(f"weights for '{pattern}': no tensor has such a name; one is '{every[-1]}'")
    layers = [number for number in map(layer_of, every) if number is not None]
    if not anchors:
        return GroupWeights(weights, patterns)
    if len(anchors) < 2 or not layers:
        raise UsageError(
            "layer weights need at least two lists (0.9,0.1;0.1,0.9)"
            if layers
            else "the models have no numbered layers"
        )
    return GroupWeights(weights, patterns, anchors, max(layers) + 1)


@dataclass(frozen=True)
class Plan:
    """What a merge will do.

    Attributes:
        checkpoints: The models, in the order of the arguments.
        base: The base, for methods that need it.
        options: Method and parameters.
        weights: The weights of each tensor.
        statistics: Data-driven numbers of each model, for methods that need them.
    """

    checkpoints: tuple[Checkpoint, ...]
    base: Checkpoint | None
    options: MergeOptions
    weights: GroupWeights
    statistics: tuple[Checkpoint, ...] = ()
    seeds: tuple[int, ...] = ()
    buffers: dict[int, Floats] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.seeds) == len(self.checkpoints):  # the same models with other weights
            return
        names: list[str] = [fingerprint(checkpoint) for checkpoint in self.checkpoints]
        # what a few numbers don't tell apart is told apart by all of them
        names = [
            hash_of(checkpoint) if names.count(name) > 1 else name
            for checkpoint, name in zip(self.checkpoints, names, strict=True)
        ]
        object.__setattr__(self, "seeds", tuple(int(name[:16], 16) for name in names))

    def tiles(self, key: Key) -> Iterator[Floats]:
        """Yield the merged numbers of a tensor of a floating type, tile by tile.

        Raises:
            DataError: A model holds NaN or infinite numbers, or the result would.
        """
        stack = self._stack(key)
        method = merge_methods[self.options.method]
        try:
            if len(stack.models) == 1 and stack.base is None and stack.weights[0] == 1:
                merged = stack.combine([1.0])
            else:
                merged = method(stack, **parameters(method, self.options))
        except FloatingPointError:
            self._refuse_not_finite(key)
        for tile in merged:
            if not np.isfinite(tile).all():
                self._refuse_not_finite(key)
            yield tile

    def tensor(self, row: int, key: Key) -> Tensor:
        """Return the tensor of a model, under its own name or the one that it is tied to."""
        return tensor_of(self.checkpoints[row], key)

    def content(self, key: Key) -> bytes:
        """Return the bytes of a tensor of whole numbers, which can't be averaged and so must be the same in all models.

        Raises:
            DataError: They aren't.
        """
        mine = self.tensor(0, key).content()
        for checkpoint in self.checkpoints[1:] if not self.is_excluded(key) else ():
            if key in checkpoint.tensors and checkpoint.tensors[key].content() != mine:
                raise DataError(
                    f"{self.checkpoints[0].name} and {checkpoint.name} can't be merged: "
                    f"'{key[1]}' ({self.tensor(0, key).dtype}) differs"
                )
        return mine

    def is_excluded(self, key: Key) -> bool:
        """Return whether a tensor is taken from the first model as it is."""
        return is_excluded(key, self.options)

    def _stack(self, key: Key) -> Stack:
        name = key[1]
        weights = [1.0] if self.is_excluded(key) else list(self.weights.of(name))
        # a fixed order of summation, whatever the order of the arguments; models of weight 0 take no part
        rows = sorted((row for row in range(len(weights)) if weights[row]), key=lambda row: (self.seeds[row], row))
        rows = rows or [0]
        return Stack(
            name=name,
            shape=self.tensor(0, key).shape,
            models=[self.tensor(row, key) for row in rows],
            weights=np.array([weights[row] for row in rows]),
            seeds=[self.seeds[row] for row in rows],
            base=None if self.base is None or self.is_excluded(key) else tensor_of(self.base, key),
            statistics=[self.statistics[row].tensors[key] for row in rows if key in self.statistics[row].tensors]
            if self.statistics
            else [],
            densities=[] if self.is_excluded(key) else self._densities(name, rows),
            buffers=self.buffers,
        )

    def _densities(self, name: str, rows: Sequence[int]) -> list[float]:
        """Return the densities of the models of these rows in a tensor, if patterns say them; the last match counts."""
        matching = [densities for pattern, densities in self.options.density_for.items() if fnmatchcase(name, pattern)]
        return [matching[-1][row] for row in rows] if matching else []

    def _refuse_not_finite(self, key: Key) -> NoReturn:
        every = (*self.checkpoints, *([self.base] if self.base else []))
        for checkpoint in every:
            tensor = tensor_of(checkpoint, key)
            count = count_of(tensor)
            for first in range(0, count, TILE):
                values = np.empty(min(TILE, count - first), np.float32)
                tensor.read(first, values)
                if not np.isfinite(values).all():
                    raise DataError(f"{checkpoint.name}: tensor '{key[1]}' holds NaN or infinite values")
        raise DataError(f"tensor '{key[1]}': the merged values are too large; use smaller weights or scale")


def with_weights(
    plan: Plan,
    weights: Sequence[float],
    weights_for: Mapping[str, Sequence[float]],
    scale: float | None,
    method: str = "",
) -> Plan:
    """Return the plan with other weights; patterns that the user gave win over those of `weights_for`.

    Args:
        plan: The merge.
        weights: One of each model.
        weights_for: Weights of each model by pattern of tensor names, as a search found them.
        scale: Length of the merged task vector; None keeps the plan's.
        method: Another method, whose base is the last model; "" keeps the plan's.
    """
    if method:
        options = plan.options.model_copy(update={"method": method, "base": plan.checkpoints[-1].name})
        plan = replace(plan, options=options, base=plan.checkpoints[-1])
    options = plan.options if scale is None else plan.options.model_copy(update={"scale": scale})
    patterns = {**weights_for, **plan.weights.patterns}
    return replace(plan, options=options, weights=replace(plan.weights, weights=weights, patterns=patterns))


def tensor_of(checkpoint: Checkpoint, key: Key) -> Tensor:
    """Return a tensor of a model, under its own name or the one that it is tied to."""
    return checkpoint.tensors[key if key in checkpoint.tensors else checkpoint.aliases[key]]


def is_excluded(key: Key, options: MergeOptions) -> bool:
    """Return whether a tensor is taken from the first model as it is."""
    return any(fnmatchcase(key[1], pattern) for pattern in options.exclude)


def source_of(plan: Plan, row: int, key: Key) -> Tensor:
    """The tensor that a model brings into a merge: its own, or the first model's where that is taken as it is."""
    return plan.tensor(0 if plan.is_excluded(key) else row, key)


def normalises(options: MergeOptions) -> bool:
    """Return whether weights are scaled to sum 1."""
    if options.normalise is not None:
        return options.normalise
    return bool(merge_methods.trait(options.method, "normalises", True))


def parameters(function: Callable[..., Any], options: MergeOptions) -> dict[str, Any]:
    """Return the options that the signature of a method or a weighting names, its own among them."""
    known = MergeOptions.model_fields
    values = {name: getattr(options, name) for name in keyword_names(function) if name in known}
    if "normalise" in values:
        values["normalise"] = normalises(options)
    return {**values, **own_options(function, known, options.plugin_options)}


def check_method(options: MergeOptions, models: Sequence[Any]) -> None:
    """Refuse a method that can't merge so many models, or misses its base.

    Raises:
        UsageError: With what the method needs.
    """
    method = options.method
    merge_methods[method]  # an unknown name is an error that lists the known
    wanted = merge_methods.trait(method, "models")
    if wanted and len(models) != wanted:
        raise UsageError(f"{method} merges exactly {wanted} models, got {len(models)}")
    if merge_methods.trait(method, "base") and options.base is None:
        raise UsageError(f"{method} adds up what tuning changed: name the model that was tuned with `base`")
    if options.normalise is False and merge_methods.trait(method, "normalises") == "always":
        raise UsageError(f"{method} has a meaning only with weights of sum 1; leave out `normalise=False`")
    if options.base is not None and not merge_methods.trait(method, "base"):
        with_base = [name for name in merge_methods if merge_methods.trait(name, "base")]
        raise UsageError(f"{method} needs no base; `base` goes with {', '.join(with_base)}")
    if merge_methods.trait(method, "weighted", True) is False and (
        options.weights != "uniform" or options.share is not None or options.weights_for or options.layer_weights
    ):
        raise UsageError(f"{method} takes no weights: it goes by what the models hold")


def floats_of(checkpoint: Checkpoint) -> list[Key]:
    """Return the tensors of floating types of a model, in its order."""
    return [key for key, tensor in checkpoint.tensors.items() if tensor.dtype in FLOATS]


@dataclass(slots=True)
class _Latest:
    """The tensor that was computed last; methods that read it in several passes find it here."""

    key: Key | None = None
    values: Floats = field(default_factory=lambda: np.empty(0, np.float32))


@dataclass(frozen=True, slots=True)
class MergedTensor:
    """A tensor of a merge.

    Attributes:
        plan: The merge.
        key: Which of its tensors.
        dtype: Of the merge's first model; numbers are read unrounded all the same.
        shape: Its shape.
        latest: Shared by all tensors of the merge, so that one of them at most is held.
    """

    plan: Plan
    key: Key
    dtype: str
    shape: tuple[int, ...]
    latest: _Latest

    def read(self, first: int, out: Floats) -> None:
        """See `Tensor`."""
        if self.latest.key != self.key:
            self.latest.key = None
            self.latest.values = np.empty(math.prod(self.shape), np.float32)
            place = 0
            for tile in self.plan.tiles(self.key):
                self.latest.values[place : place + len(tile)] = tile
                place += len(tile)
            self.latest.key = self.key
        out[:] = self.latest.values[first : first + len(out)]

    def content(self) -> bytes:
        """See `Tensor`."""
        return self.plan.content(self.key)


def as_checkpoint(name: str, plan: Plan, found: Any = None) -> Checkpoint:
    """Return the result of a merge, as if it were a model that is read."""
    first = plan.checkpoints[0]
    latest = _Latest()
    chosen = {
        role: plan.checkpoints[number - 1] if number else first
        for role, number in (
            ("prompts", plan.options.prompts_from),
            ("length", plan.options.length_from),
            ("tokenizer", plan.options.tokenizer_from),
        )
    }
    return Checkpoint(
        name,
        first.folder,
        first.files,
        {key: MergedTensor(plan, key, tensor.dtype, tensor.shape, latest) for key, tensor in first.tensors.items()},
        first.metadata,
        first.aliases,
        parts=(*plan.checkpoints, *([plan.base] if plan.base else [])),
        made={
            # without paths: a model is what it holds, wherever it lies
            "options": plan.options.model_dump(mode="json", exclude={"weights", "base"}),
            # as run.json has it, so that the merge can be done again without seeking weights
            "models": [
                {"weight": weight, **({"recipe": one.made} if one.made and "models" in one.made else {})}
                for weight, one in zip(plan.weights.weights, plan.checkpoints, strict=True)
            ],
            "weights_for": {name: list(weights) for name, weights in plan.weights.patterns.items()},
            "scale": plan.options.scale,
            **({"method": found.method} if found is not None and found.method else {}),
        },
        found=found,
        prompts_of=chosen["prompts"].prompts_of or chosen["prompts"].folder,
        length_of=chosen["length"].length_of or chosen["length"].folder,
        tokenizer_of=chosen["tokenizer"].tokenizer_of or chosen["tokenizer"].folder,
    )
