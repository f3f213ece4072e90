"""A merge as a model of another merge: computed tensor by tensor when it is read, never written."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bge_cocktail.merging.checkpoints import Checkpoint
from bge_cocktail.merging.plan import Plan
from bge_cocktail.merging.tensors import Floats, Key


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
    """The result of a merge, as if it were a model that is read."""
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
        },
        found=found,
        prompts_of=chosen["prompts"].prompts_of or chosen["prompts"].folder,
        length_of=chosen["length"].length_of or chosen["length"].folder,
        tokenizer_of=chosen["tokenizer"].tokenizer_of or chosen["tokenizer"].folder,
    )
