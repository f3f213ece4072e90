"""Weights of models in a merge: given, uniform, or found from what the models do with a few examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from bge_cocktail.errors import UsageError
from bge_cocktail.merging.methods import merge_methods
from bge_cocktail.merging.plan import takes
from bge_cocktail.options import Merging
from bge_cocktail.registry import Registry


@dataclass(frozen=True, slots=True)
class Found:
    """Weights, and what led to them.

    Attributes:
        weights: Of each model.
        losses: Of each model on the examples, where weights came from losses.
        weights_for: Other weights for tensors by pattern, where each layer has its own.
        scale: Length of the merged task vector, where that was found too.
        trials: The merges that were tried: weights, and what they scored.
        note: What a person should know of it.
    """

    weights: Sequence[float]
    losses: Sequence[float] = ()
    weights_for: Mapping[str, Sequence[float]] = field(default_factory=dict)
    scale: float | None = None
    trials: Sequence[Mapping[str, Any]] = ()
    note: str = ""


class Tasting(Protocol):
    """What a weighting may ask about the models and their merges."""

    @property
    def names(self) -> Sequence[str]:
        """The models."""
        ...

    def losses(self, rows: Sequence[int]) -> list[float]:
        """The contrastive loss of models on the examples."""
        ...

    def chance(self) -> float:
        """The loss of a model that knows nothing: the logarithm of the number of candidates."""
        ...

    def scores(self, weights: Sequence[float]) -> tuple[float, float | None]:
        """Target and general score of a merge with such weights; without tasks, minus the loss on the examples."""
        ...

    def descend(self, *, steps: int, rate: float, per_layer: bool, scaled: bool, seed: int) -> Found:
        """Weights by gradient descent on the loss of the merged model."""
        ...


Weighting = Callable[..., Found]
"""Takes a `Tasting` and the rows of the models to weigh, and by keyword the options that its signature names."""
weightings = Registry[Weighting]("weightings")
# traits: shared (it weighs all models at once, so that --share makes no sense with it), data (what it may look at)


@weightings("uniform")
def uniform(_: Tasting, rows: Sequence[int]) -> Found:
    """The same weight for every model."""
    return Found([1 / len(rows)] * len(rows))


@weightings("cocktail", data=("examples",))
def cocktail(tasting: Tasting, rows: Sequence[int], *, temperature: float) -> Found:
    """LM-Cocktail's: softmax(-loss / temperature) over the models, on a few examples (arXiv:2311.13534)."""
    losses = tasting.losses(rows)
    return Found(cocktail_weights(losses, temperature), losses)


@weightings("relative", data=("examples",))
def relative(tasting: Tasting, rows: Sequence[int], *, skill_temperature: float) -> Found:
    """From losses on a scale of their own: chance has skill 0, the best model 1; no better than chance, no weight."""
    losses = tasting.losses(rows)
    return Found(relative_weights(losses, tasting.chance(), skill_temperature), losses)


@weightings("ema")
def ema(_: Tasting, rows: Sequence[int], *, decay: float) -> Found:
    """Checkpoints of one run, oldest first: each older one counts less by a factor (arXiv:1803.05407)."""
    powers = decay ** np.arange(len(rows) - 1, -1, -1, dtype=np.float64)
    return Found([float(power) for power in powers / powers.sum()])


@weightings("greedy", shared=True, data=("examples", "target"))
def greedy(tasting: Tasting, rows: Sequence[int]) -> Found:
    """Model by model from the best on, each kept if the merge gets no worse (greedy soup, arXiv:2203.05482)."""
    alone = [tasting.scores(_even(rows, [row]))[0] for row in rows]
    trials = [{"weights": _even(rows, [row]), "target": score} for row, score in zip(rows, alone, strict=True)]
    order = sorted(rows, key=lambda row: -alone[row])
    kept, best = [order[0]], alone[order[0]]
    for row in order[1:]:
        weights = _even(rows, [*kept, row])
        score = tasting.scores(weights)[0]
        trials.append({"weights": weights, "target": score})
        if score >= best:
            kept, best = [*kept, row], score
    return Found(_even(rows, kept), trials=trials, note=f"kept {len(kept)} of {len(rows)} models")


@weightings("gradient", shared=True, data=("examples",))
def gradient(tasting: Tasting, _: Sequence[int], *, steps: int, rate: float, per_layer: bool, seed: int) -> Found:
    """Descent on the loss of the merged model itself: dL/dw_i = <dL/dtheta, theta_i>, one backward pass for all."""
    return tasting.descend(steps=steps, rate=rate, per_layer=per_layer, scaled=False, seed=seed)


@weightings("self-positioning", shared=True, data=("examples",))
def self_positioning(tasting: Tasting, _: Sequence[int], *, steps: int, rate: float, seed: int) -> Found:
    """Descent on the direction and the length of the merged task vector (after arXiv:2410.15035); needs --base."""
    return tasting.descend(steps=steps, rate=rate, per_layer=False, scaled=True, seed=seed)


@weightings("search", shared=True, data=("examples", "target"))
def search(tasting: Tasting, rows: Sequence[int], *, trials: int, seed: int) -> Found:
    """The best of many merges by the target score, proposed by CMA-ES (arXiv:1604.00772)."""
    from bge_cocktail.merging.blackbox import best_weights

    return best_weights(tasting, len(rows), trials, seed)


@weightings("pareto", shared=True, data=("target", "general"))
def pareto(
    tasting: Tasting, rows: Sequence[int], *, shares: Sequence[float], epsilon: float, trials: int, seed: int
) -> Found:
    """The best target score among merges whose general score is not below the base's minus epsilon."""
    from bge_cocktail.merging.blackbox import best_within

    return best_within(tasting, len(rows), shares, epsilon, trials, seed)


def cocktail_weights(losses: Sequence[float], temperature: float = 5.0) -> list[float]:
    """LM-Cocktail's weights: ``softmax(-loss / temperature)`` over the models (arXiv:2311.13534).

    Args:
        losses: Loss of each model on the same examples.
        temperature: The larger, the more equal the weights.

    Returns:
        Weights of sum 1.
    """
    scaled = -np.asarray(losses, np.float64) / temperature
    powers = np.exp(scaled - scaled.max())
    return [float(weight) for weight in powers / powers.sum()]


def relative_weights(losses: Sequence[float], chance: float, temperature: float = 0.1) -> list[float]:
    """Weights that don't depend on the scale of the losses.

    A model's skill is ``(chance - loss) / (chance - least loss)``: 1 for the best model, 0 for one that guesses.
    Weights are ``softmax(skill / temperature)`` over the models of some skill; the others get 0.

    Args:
        losses: Loss of each model on the same examples.
        chance: The loss of a model that knows nothing.
        temperature: The larger, the more equal the weights.

    Returns:
        Weights of sum 1; equal ones where no model is better than chance.
    """
    above = chance - np.asarray(losses, np.float64)
    if above.max() <= 0:
        return [1 / len(losses)] * len(losses)
    skills = above / above.max()
    powers = np.where(skills > 0, np.exp((skills - 1) / temperature), 0)
    return [float(weight) for weight in powers / powers.sum()]


def given_weights(weights: Sequence[float], models: int, *, normalise: bool = True) -> list[float]:
    """Check a user's weights and scale them to sum 1.

    Args:
        weights: One for each model.
        models: How many models they are for.
        normalise: Without it they are taken as they are, and may be negative.

    Raises:
        UsageError: Another number of weights than models, a negative one, or none above 0.
    """
    if len(weights) != models:
        raise UsageError(f"{len(weights)} weights for {models} models; give one for each (with a share: but the first)")
    if not all(np.isfinite(weights)):
        raise UsageError(f"weights must be finite numbers, got {list(weights)}")
    if not normalise:
        return list(weights)
    if any(weight < 0 for weight in weights):
        raise UsageError(f"weights must be numbers of at least 0, got {list(weights)} (negative ones: --no-normalise)")
    total = sum(weights)
    if total <= 0:
        raise UsageError("all weights are 0; at least one must be above 0")
    return [weight / total for weight in weights]


def find_weights(names: Sequence[str], options: Merging, tasting: Tasting, *, normalise: bool) -> Found:
    """The weight of each model.

    Args:
        names: The models.
        options: How to find them.
        tasting: Answers what the weighting asks.
        normalise: Whether the method wants weights of sum 1.

    Raises:
        UsageError: Options that don't fit each other.
    """
    rows = list(range(len(names))) if options.share is None else list(range(1, len(names)))
    if options.share is not None and (not rows or not normalise):
        raise UsageError("--share needs a first model and others, and weights of sum 1")
    if isinstance(options.weights, str):
        weighting = weightings[options.weights]
        found = weighting(tasting, rows, **{name: getattr(options, name) for name in takes(weighting)})
        if options.weights == "uniform" and not normalise:
            found = Found([1.0] * len(rows))
    else:
        found = Found(given_weights(options.weights, len(rows), normalise=normalise))
    if options.share is None:
        return found
    rest = [(1 - options.share) * weight for weight in found.weights]
    return Found([options.share, *rest], found.losses, found.weights_for, found.scale, found.trials, found.note)


def _even(rows: Sequence[int], chosen: Sequence[int]) -> list[float]:
    return [1 / len(chosen) if row in chosen else 0.0 for row in rows]


def check_weights(options: Merging) -> None:
    """Refuse weights that are unknown, or that other options leave without effect.

    Raises:
        UsageError: With the reason.
    """
    if isinstance(options.weights, str):
        weightings[options.weights]  # an unknown name is an error that lists the known
        if options.share is not None and weightings.trait(options.weights, "shared"):
            raise UsageError(f"--share doesn't go with weights '{options.weights}', which weigh all models at once")
    if options.layer_weights is not None and (options.weights != "uniform" or options.share is not None):
        raise UsageError("--layer-weights say the weights of all layers; leave out --weights and --share")
    if options.tokenizer_from not in (None, 1) and "examples" in data_of(options):
        raise UsageError(
            "--tokenizer-from doesn't go with weights or methods that look at examples; put that model first"
        )


def data_of(options: Merging) -> list[str]:
    """What a merge may look at: examples, target tasks, general tasks."""
    looks = weightings.trait(options.weights, "data", ()) if isinstance(options.weights, str) else ()
    known = options.method in merge_methods
    return [*looks, *(("examples",) if known and merge_methods.trait(options.method, "data") else ())]
