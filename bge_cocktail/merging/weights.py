"""Weights of models in a merge: given, uniform, found from losses on examples, or searched."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import UsageError
from bge_cocktail.core.registry import Registry
from bge_cocktail.merging.methods import merge_methods
from bge_cocktail.merging.plan import parameters
from bge_cocktail.options import MergeOptions


@dataclass(frozen=True, slots=True)
class WeightsResult:
    """Weights, and what led to them.

    Attributes:
        weights: Of each model.
        losses: Of each model on the examples, where weights came from losses.
        weights_for: Other weights for tensors by pattern, where each layer has its own.
        scale: Length of the merged task vector, where that was found too.
        trials: The merges that were tried: weights, and what they scored.
        note: What a person should know of it.
        method: To merge with, where it isn't the one that was asked for; the last model is then the base.
    """

    weights: Sequence[float]
    losses: Sequence[float] = ()
    weights_for: Mapping[str, Sequence[float]] = field(default_factory=dict)
    scale: float | None = None
    trials: Sequence[Mapping[str, Any]] = ()
    note: str = ""
    method: str = ""


@dataclass(frozen=True, slots=True)
class MergeScores:
    """What a merge scores on tasks.

    Attributes:
        target: Mean score on the target tasks.
        general: On the general ones.
        of_target: The former on resamples of the queries, the same for all merges; shape (resamples,).
        of_general: The latter on them.
    """

    target: float
    general: float
    of_target: NDArray[np.float64]
    of_general: NDArray[np.float64]


class Objective(Protocol):
    """What a weighting may ask about the models and their merges."""

    @property
    def names(self) -> Sequence[str]:
        """The models."""
        ...

    @property
    def other_methods(self) -> Sequence[str]:
        """Methods with a base that may be tried beside the one that was asked for."""
        ...

    def losses(self, rows: Sequence[int]) -> list[float]:
        """Return the loss of models on the examples."""
        ...

    def losses_in_parts(self, rows: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the losses of models on each batch of examples, and those of a model that knows nothing.

        Returns:
            Shapes (models, batches) and (batches,).
        """
        ...

    def scores(self, weights: Sequence[float]) -> tuple[float, float | None]:
        """Target and general score of a merge with such weights; without tasks, minus the loss on the examples."""
        ...

    def judged(self, weights: Sequence[float], method: str = "") -> MergeScores:
        """Return what a merge with such weights scores, by another method on the last model if one is named.

        Raises:
            UsageError: There are no target or no general tasks.
        """
        ...


Weighting = Callable[..., WeightsResult]
"""Takes a `Objective` and the rows of the models to weigh, and by keyword the options that its signature names."""
weightings = Registry[Weighting]("weightings", ("bge_cocktail.merging.gradient",))


@weightings("uniform")
def uniform(_: Objective, rows: Sequence[int]) -> WeightsResult:
    """The same weight for every model."""
    return WeightsResult([1 / len(rows)] * len(rows))


@weightings("cocktail", data=("examples",))
def cocktail(objective: Objective, rows: Sequence[int], *, temperature: float) -> WeightsResult:
    """LM-Cocktail's: softmax(-loss / temperature) over the models, on a few examples (arXiv:2311.13534)."""
    losses = objective.losses(rows)
    return WeightsResult(cocktail_weights(losses, temperature), losses)


@weightings("relative", data=("examples",))
def relative(objective: Objective, rows: Sequence[int], *, skill_temperature: float, seed: int) -> WeightsResult:
    """From losses on a scale of their own: chance has skill 0, the best model 1; equal where differences are noise."""
    losses, chance = objective.losses_in_parts(rows)
    weights = bagged_relative_weights(losses, chance, skill_temperature, seed)
    return WeightsResult(weights, losses.mean(axis=1).tolist())


@weightings("ema")
def ema(_: Objective, rows: Sequence[int], *, decay: float) -> WeightsResult:
    """Checkpoints of one run, oldest first: each older one counts less by a factor (arXiv:1803.05407)."""
    powers = decay ** np.arange(len(rows) - 1, -1, -1, dtype=np.float64)
    return WeightsResult([float(power) for power in powers / powers.sum()])


@weightings("greedy", shared=True, data=("examples", "target"))
def greedy(objective: Objective, rows: Sequence[int]) -> WeightsResult:
    """Model by model from the best on, each kept if the merge gets no worse (greedy soup, arXiv:2203.05482)."""
    alone = [objective.scores(_even(rows, [row]))[0] for row in rows]
    trials = [{"weights": _even(rows, [row]), "target": score} for row, score in zip(rows, alone, strict=True)]
    order = sorted(rows, key=lambda row: -alone[row])
    kept, best = [order[0]], alone[order[0]]
    for row in order[1:]:
        weights = _even(rows, [*kept, row])
        score = objective.scores(weights)[0]
        trials.append({"weights": weights, "target": score})
        if score >= best:
            kept, best = [*kept, row], score
    return WeightsResult(_even(rows, kept), trials=trials, note=f"kept {len(kept)} of {len(rows)} models")


@weightings("search", shared=True, data=("examples", "target"))
def search(objective: Objective, rows: Sequence[int], *, trials: int, seed: int) -> WeightsResult:
    """The best of many merges by the target score, proposed by CMA-ES (arXiv:1604.00772)."""

    return best_weights(objective, len(rows), trials, seed)


@weightings("pareto", shared=True, data=("target", "general"))
def pareto(
    objective: Objective, rows: Sequence[int], *, shares: Sequence[float], epsilon: float, trials: int, seed: int
) -> WeightsResult:
    """The best target score among merges whose general score is not below the base's minus epsilon."""

    return best_within(objective, len(rows), shares, epsilon, trials, seed)


@weightings("auto", shared=True, data=("target", "general"))
def auto(objective: Objective, rows: Sequence[int], *, auto_shares: Sequence[float], epsilon: float) -> WeightsResult:
    """The best of a few merges whose target score is among the best, and that keep the base's general one."""
    return best_without_harm(objective, len(rows), auto_shares, epsilon)


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


RESAMPLES = 1000


def bagged_relative_weights(
    losses: NDArray[np.float64], chance: NDArray[np.float64], temperature: float = 0.1, seed: int = 13
) -> list[float]:
    """Return the mean of relative weights over bootstrap resamples of the examples (bagging, Breiman 1996).

    Where models differ by less than another draw of examples would have them differ, each resample prefers another
    one, and their mean goes towards equal weights.

    Args:
        losses: Of each model on each batch of examples, shape (models, batches).
        chance: Of a model that knows nothing, shape (batches,).
        temperature: As in `relative_weights`.
        seed: Seeds the resamples.

    Returns:
        Weights of sum 1.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.integers(losses.shape[1], size=(RESAMPLES, losses.shape[1]))
    weights = [relative_weights(losses[:, row].mean(axis=1), float(chance[row].mean()), temperature) for row in drawn]
    return [float(weight) for weight in np.mean(weights, axis=0)]


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
        given = list(weights)
        raise UsageError(f"weights must be numbers of at least 0, got {given} (negative ones: `normalise=False`)")
    total = math.fsum(weights)  # the same in any order, to the last bit
    if total <= 0:
        raise UsageError("all weights are 0; at least one must be above 0")
    return [weight / total for weight in weights]


def find_weights(
    names: Sequence[str], options: MergeOptions, objective: Objective, *, normalise: bool
) -> WeightsResult:
    """Return the weight of each model.

    Args:
        names: The models.
        options: How to find them.
        objective: Answers what the weighting asks.
        normalise: Whether the method wants weights of sum 1.

    Raises:
        UsageError: Options that don't fit each other.
    """
    rows = list(range(len(names))) if options.share is None else list(range(1, len(names)))
    if options.share is not None and (not rows or not normalise):
        raise UsageError("`share` needs a first model and others, and weights of sum 1")
    if isinstance(options.weights, str):
        weighting = weightings[options.weights]
        result = weighting(objective, rows, **parameters(weighting, options))
        if options.weights == "uniform" and not normalise:
            result = WeightsResult([1.0] * len(rows))
    else:
        result = WeightsResult(given_weights(options.weights, len(rows), normalise=normalise))
    if options.share is None:
        return result
    rest = [(1 - options.share) * weight for weight in result.weights]
    return WeightsResult(
        [options.share, *rest], result.losses, result.weights_for, result.scale, result.trials, result.note
    )


def _even(rows: Sequence[int], chosen: Sequence[int]) -> list[float]:
    return [1 / len(chosen) if row in chosen else 0.0 for row in rows]


def check_weights(options: MergeOptions) -> None:
    """Refuse weights that are unknown, or that other options leave without effect.

    Raises:
        UsageError: With the reason.
    """
    if isinstance(options.weights, str):
        weightings[options.weights]  # an unknown name is an error that lists the known
        if options.share is not None and weightings.trait(options.weights, "shared"):
            raise UsageError(f"`share` doesn't go with weights '{options.weights}', which weigh all models at once")
    if options.layer_weights is not None and (options.weights != "uniform" or options.share is not None):
        raise UsageError("`layer_weights` say the weights of all layers; leave out `weights` and `share`")
    if isinstance(options.weights, str) and options.weights != "uniform" and known_weights(options):
        raise UsageError(f"{options.method} measures with the weights that it merges with; give numbers, or uniform")
    if options.tokenizer_from not in (None, 1) and "examples" in data_of(options):
        raise UsageError(
            "`tokenizer_from` doesn't go with weights or methods that look at examples; put that model first"
        )


def known_weights(options: MergeOptions) -> bool:
    """Return whether the method must know the weights before it measures models."""
    return options.method in merge_methods and bool(merge_methods.trait(options.method, "known_weights"))


def data_of(options: MergeOptions) -> list[str]:
    """Return what a merge may look at: examples, target tasks, general tasks."""
    looks = weightings.trait(options.weights, "data", ()) if isinstance(options.weights, str) else ()
    known = options.method in merge_methods
    return [*looks, *(("examples",) if known and merge_methods.trait(options.method, "data") else ())]


STEPS_OF_GRID = 4


def best_weights(objective: Objective, models: int, trials: int, seed: int) -> WeightsResult:
    """Weights of the best target score, searched with CMA-ES over their logits (arXiv:1604.00772).

    Each model alone and the uniform mean are tried first, so that the result is never worse than those.

    Args:
        objective: Scores merges.
        models: How many.
        trials: Merges to try; at least those.
        seed: Of the proposals.
    """
    from cmaes import CMA

    trials = max(trials, models + 1)
    tried: list[dict[str, Any]] = []

    def score(weights: Sequence[float]) -> float:
        target, general = objective.scores(weights)
        tried.append({"weights": list(weights), "target": target, "general": general})
        return target

    for weights in (*np.eye(models).tolist(), [1 / models] * models):
        score(weights)
    optimiser = CMA(mean=np.zeros(max(models, 2)), sigma=1.0, seed=seed)
    while len(tried) < trials and models > 1:
        asked = [optimiser.ask() for _ in range(min(optimiser.population_size, trials - len(tried)))]
        told = [(logits, -score(_softmax(logits))) for logits in asked]
        if len(told) < optimiser.population_size:
            break
        optimiser.tell(told)
    best = max(tried, key=lambda trial: trial["target"])
    return WeightsResult(best["weights"], trials=tried, note=f"the best of {len(tried)} merges by target score")


def best_within(
    objective: Objective, models: int, shares: Sequence[float], epsilon: float, trials: int, seed: int
) -> WeightsResult:
    """Weights of the best target score among merges that keep the general score.

    Two models, the tuned one and the base, are tried at all shares. Of more, the last is the base: they are tried on a
    grid over the simplex, or at as many points of it drawn at random if the grid is larger.

    Args:
        objective: Scores merges on target and general tasks.
        models: How many.
        shares: Of the first of two models.
        epsilon: How much the general score may lie below that of the last model.
        trials: The most merges to try of more than two models.
        seed: Of the draw.

    Raises:
        UsageError: There are no general tasks, or one model only.
    """
    if models < 2:
        raise UsageError("weights pareto need at least two models, the base being the last")
    base = [0.0] * (models - 1) + [1.0]
    floor = objective.scores(base)[1]
    if floor is None:
        raise UsageError("weights pareto need `target` and `general` tasks")
    points = [[share, 1 - share] for share in shares] if models == 2 else _simplex(models, trials, seed)
    tried: list[dict[str, Any]] = []
    for weights in [base, *(point for point in points if point != base)]:
        target, general = objective.scores(weights)
        tried.append({"weights": weights, "target": target, "general": general})
    front = pareto_front(tried)
    for trial in tried:
        trial["on_front"] = trial in front
    kept = [trial for trial in tried if trial["general"] is not None and trial["general"] >= floor - epsilon]
    best = max(kept, key=lambda trial: (trial["target"], trial["general"]))
    note = f"best target score of {len(kept)} merges (of {len(tried)}) with a general score from {floor - epsilon:.4f}"
    return WeightsResult(best["weights"], trials=tried, note=note)


CONFIDENCE = 0.95
# of the tuned model among others
_HALF = 0.5


def best_without_harm(objective: Objective, models: int, shares: Sequence[float], epsilon: float) -> WeightsResult:
    """Weights of the best among a few merges that do no harm.

    The first model is the tuned one, the last the base. Tried are both alone, and the tuned one at each share with the
    base; where there are others, too, half of the tuned one with all of them, by the method that was asked for and by
    those that add to the base what tuning changed. A merge does no harm if its general score is not below the
    base's minus epsilon; what it reaches in 95 % of paired resamples of the queries (one-sided bootstrap, Efron 1979)
    is said beside it. To ask for that bound to lie above stays with the base wherever dev is small, at half of what
    tuning gains (docs/results.md). Of those, the ones whose target score lies below the best one in 95 % of resamples
    are out, and of the rest the best sum of both scores is taken: between merges that dev can't tell apart on the
    target, the general tasks, which are more, decide.

    Args:
        objective: Scores merges on target and general tasks.
        models: How many.
        shares: Of the first model.
        epsilon: How much the general score may lie below that of the last model.

    Raises:
        UsageError: There are no general tasks, or one model only.
    """
    if models < 2:
        raise UsageError("weights auto need at least two models, the base being the last")
    points = [[0.0] * (models - 1) + [1.0], [1.0] + [0.0] * (models - 1)]
    points += [[share] + [0.0] * (models - 2) + [1 - share] for share in shares]
    merges = [(point, "") for point in points]
    if models > 2:
        merges.append(([_HALF] + [(1 - _HALF) / (models - 1)] * (models - 1), ""))
        of_changes = [_HALF] + [(1 - _HALF) / (models - 2)] * (models - 2) + [0.0]
        merges += [(of_changes, method) for method in objective.other_methods]
    found = [objective.judged(weights, method) for weights, method in merges]
    base = found[0]
    best = max(
        (one for one in found if one is base or one.general >= base.general - epsilon),
        key=lambda one: (one.target, one.general),
    )
    tried: list[dict[str, Any]] = [
        {
            "weights": weights,
            **({"method": method} if method else {}),
            "target": one.target,
            "general": one.general,
            "general_at_least": base.general + _least(one.of_general, base.of_general),
            # of what is sure to lose on the target, no general score makes up for it
            "below_best": _least(best.of_target, one.of_target) > 0,
        }
        for (weights, method), one in zip(merges, found, strict=True)
    ]
    front = pareto_front(tried)
    for trial in tried:
        trial["on_front"] = trial in front
    floor = base.general - epsilon
    gained = best.target > base.target
    kept = [
        trial
        for trial in tried[1:]
        if gained and trial["general"] >= floor and not trial["below_best"] and trial["target"] > base.target
    ]
    chosen = max(kept, key=lambda trial: (trial["target"] + trial["general"], trial["target"]), default=tried[0])
    note = _verdict(objective.names, chosen, tried, epsilon)
    return WeightsResult(chosen["weights"], trials=tried, note=note, method=chosen.get("method", ""))


def _least(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return what a score exceeds another one by in 95 % of the resamples; below 0 where that isn't sure."""
    return float(np.quantile(one - other, 1 - CONFIDENCE))


def _verdict(names: Sequence[str], best: Mapping[str, Any], tried: Sequence[Mapping[str, Any]], epsilon: float) -> str:
    """Return in a sentence what was chosen, and why."""
    base, tuned = tried[:2]
    if best is base:
        reached = max(tried[1:], key=lambda trial: trial["target"])
        if reached["target"] <= base["target"]:
            return f"stay with {names[-1]}: no merge has a better target score than its {base['target']:.4f}"
        return (
            f"stay with {names[-1]}: every merge with a better target score (up to {reached['target']:.4f}, from "
            f"{base['target']:.4f}) has a general score below {base['general']:.4f} - {epsilon:g}"
        )
    of_others = sum(best["weights"][1:-1])
    parts = [f"{100 * best['weights'][0]:.0f} % {names[0]}"]
    parts += [f"{100 * of_others:.0f} % of {len(names) - 2} others"] if of_others else []
    parts += [f"{100 * best['weights'][-1]:.0f} % {names[-1]}"] if best["weights"][-1] else []
    if best.get("method"):
        parts[-1] += f" by {best['method']} on {names[-1]}"
    above = [trial for trial in tried if trial["target"] > best["target"]]
    harmless = [trial["target"] for trial in above if trial["general"] >= base["general"] - epsilon]
    if not above:
        why = "the best target score of all"
    elif harmless:
        why = f"target scores up to {max(harmless):.4f} can't be told from it, and it is better on both together"
    elif tuned["target"] > best["target"]:
        why = f"{tuned['target']:.4f} of {names[0]} alone would cost the general score more than {epsilon:g}"
    else:
        why = f"higher target scores would cost the general score more than {epsilon:g}"
    return (
        f"use {', '.join(parts)}: target {best['target']:.4f} (base {base['target']:.4f}), general "
        f"{best['general']:.4f} (base {base['general']:.4f}; at least {best['general_at_least']:.4f} with "
        f"{100 * CONFIDENCE:.0f} % confidence), {why}"
    )


def pareto_front(trials: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The trials that no other beats in one score without losing in the other, from the best target score down."""
    front: list[Mapping[str, Any]] = []
    for trial in sorted(trials, key=lambda trial: (-trial["target"], -(trial["general"] or 0))):
        if not front or (trial["general"] or 0) > (front[-1]["general"] or 0):
            front.append(trial)
    return front


def _simplex(models: int, trials: int, seed: int) -> list[list[float]]:
    grid = list(combinations_with_replacement(range(models), STEPS_OF_GRID))
    if len(grid) <= trials:
        return [[corner.count(row) / STEPS_OF_GRID for row in range(models)] for corner in grid]
    drawn = np.random.default_rng(seed).dirichlet(np.ones(models), trials).tolist()
    corners = np.eye(models).tolist()
    return [*corners, [1 / models] * models, *drawn][: max(trials, models)]


def _softmax(logits: Sequence[float]) -> list[float]:
    powers = np.exp(np.asarray(logits) - max(logits))
    return [float(weight) for weight in powers / powers.sum()]
