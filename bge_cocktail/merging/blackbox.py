"""Weights by trying merges and scoring them: the best of all, or the best that keeps what the base knew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from bge_cocktail.errors import UsageError
from bge_cocktail.merging.weights import Found, Tasting

STEPS_OF_GRID = 4


def best_weights(tasting: Tasting, models: int, trials: int, seed: int) -> Found:
    """Weights of the best target score, searched with CMA-ES over their logits (arXiv:1604.00772).

    Each model alone and the uniform mean are tried first, so that the result is never worse than those.

    Args:
        tasting: Scores merges.
        models: How many.
        trials: Merges to try; at least those.
        seed: Of the proposals.
    """
    from cmaes import CMA

    trials = max(trials, models + 1)
    tried: list[dict[str, Any]] = []

    def score(weights: Sequence[float]) -> float:
        target, general = tasting.scores(weights)
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
    return Found(best["weights"], trials=tried, note=f"the best of {len(tried)} merges by target score")


def best_within(
    tasting: Tasting, models: int, shares: Sequence[float], epsilon: float, trials: int, seed: int
) -> Found:
    """Weights of the best target score among merges that keep the general score.

    Two models, the tuned one and the base, are tried at all shares. Of more, the last is the base: they are tried on a
    grid over the simplex, or at as many points of it drawn at random if the grid is larger.

    Args:
        tasting: Scores merges on target and general tasks.
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
    floor = tasting.scores(base)[1]
    if floor is None:
        raise UsageError("weights pareto need --target and --general tasks")
    points = [[share, 1 - share] for share in shares] if models == 2 else _simplex(models, trials, seed)
    tried: list[dict[str, Any]] = []
    for weights in [base, *(one for one in points if one != base)]:
        target, general = tasting.scores(weights)
        tried.append({"weights": weights, "target": target, "general": general})
    front = pareto_front(tried)
    for trial in tried:
        trial["on_front"] = trial in front
    kept = [trial for trial in tried if trial["general"] is not None and trial["general"] >= floor - epsilon]
    best = max(kept, key=lambda trial: (trial["target"], trial["general"]))
    note = f"best target score of {len(kept)} merges (of {len(tried)}) with a general score from {floor - epsilon:.4f}"
    return Found(best["weights"], trials=tried, note=note)


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
        return [[one.count(row) / STEPS_OF_GRID for row in range(models)] for one in grid]
    drawn = np.random.default_rng(seed).dirichlet(np.ones(models), trials).tolist()
    corners = np.eye(models).tolist()
    return [*corners, [1 / models] * models, *drawn][: max(trials, models)]


def _softmax(logits: Sequence[float]) -> list[float]:
    powers = np.exp(np.asarray(logits) - max(logits))
    return [float(weight) for weight in powers / powers.sum()]
