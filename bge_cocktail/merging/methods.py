"""The merge methods that are weighted sums of whole tensors; the factors of the sum may depend on their angles."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bge_cocktail.merging.stack import NOTHING, Doubles, Stack
from bge_cocktail.merging.tensors import Floats
from bge_cocktail.registry import Registry

MergeMethod = Callable[..., Iterator[Floats]]
"""Takes a `Stack`, and by keyword those options of `Merging` that its signature names; yields the merged values."""
merge_methods = Registry[MergeMethod]("merge-methods")
# traits: base (needs one), normalises (weights are scaled to sum 1 unless --no-normalise; "always"), models (so many),
# weighted (False: takes no weights), data (which numbers it needs from examples)

KARCHER_STEPS = 100
KARCHER_DONE = 1e-10


@merge_methods("linear")
def linear(stack: Stack) -> Iterator[Floats]:
    """Weighted mean of the same tensor of each model (Model soups, arXiv:2203.05482).

    ``sum_i w_i x_i``; with --no-normalise the weights are taken as they are.
    """
    return stack.combine(stack.weights)


@merge_methods("task-arithmetic", base=True, normalises=False)
def task_arithmetic(stack: Stack, *, scale: float) -> Iterator[Floats]:
    """Base plus the weighted sum of task vectors (arXiv:2212.04089).

    ``base + scale * sum_i w_i (x_i - base)``. A weight of 1 each unless given; a negative one unlearns.
    """
    factors = scale * stack.weights
    return stack.combine(factors, base=1 - float(factors.sum()))


@merge_methods("slerp", models=2, normalises="always")
def slerp(stack: Stack) -> Iterator[Floats]:
    """Along the arc between two models, at the weight of the second (Shoemake, SIGGRAPH 1985).

    ``sin((1 - t) a) / sin(a) x_0 + sin(t a) / sin(a) x_1`` for the angle a between the flattened tensors and t the
    second's weight. Tensors that are parallel, or zero, are interpolated linearly.
    """
    gram = stack.gram()
    norms = np.sqrt(gram[0, 0] * gram[1, 1])
    cosine = float(np.clip(gram[0, 1] / norms, -1, 1)) if norms > 0 else 1.0
    angle = np.arccos(cosine)
    share = float(stack.weights[1])
    # at the ends of the arc, 180 degrees apart, no arc is meant more than another
    if np.sin(angle) < 1e-4:
        return stack.combine([1 - share, share])
    return stack.combine(np.sin([(1 - share) * angle, share * angle]) / np.sin(angle))


@merge_methods("karcher", normalises="always")
def karcher(stack: Stack) -> Iterator[Floats]:
    """The centre of any number of models on the sphere: slerp for many (Karcher, doi:10.1002/cpa.3160300502).

    The unit vector m that minimises ``sum_i w_i angle(m, x_i/|x_i|)²``, times ``sum_i w_i |x_i|``. It lies in the span
    of the models, so it is found from their inner products alone, by gradient steps along the sphere.
    """
    gram = stack.gram()
    norms = np.sqrt(np.diag(gram))
    if not norms.all():
        return stack.combine(stack.weights)
    directions = np.clip(gram / np.outer(norms, norms), -1, 1)
    # opposite models have no centre on the sphere
    if stack.weights @ directions @ stack.weights < NOTHING:
        return stack.combine(stack.weights)
    centre = _centre_on_sphere(directions, stack.weights)
    return stack.combine(centre / norms * float(stack.weights @ norms))


def _centre_on_sphere(gram: Doubles, weights: Doubles) -> Doubles:
    """Coefficients of the Karcher mean in terms of unit vectors with these inner products."""
    centre: Doubles = weights / np.sqrt(weights @ gram @ weights)
    for _ in range(KARCHER_STEPS):
        cosines = np.clip(gram @ centre, -1, 1)
        angles = np.arccos(cosines)
        # a/sin(a) goes to 1 with the angle
        stretch = weights * np.where(angles > 1e-6, angles / np.maximum(np.sin(angles), 1e-12), 1)
        step = stretch - float(stretch @ cosines) * centre
        length = float(np.sqrt(max(float(step @ gram @ step), 0.0)))
        if length < KARCHER_DONE:
            break
        centre = np.cos(length) * centre + np.sin(length) / length * step
        centre /= np.sqrt(centre @ gram @ centre)
    return centre


@merge_methods("model-stock", base=True, weighted=False, normalises="always")
def model_stock(stack: Stack) -> Iterator[Floats]:
    """Between the base and the mean of tuned models, the nearer to the mean the more they agree (arXiv:2403.19522).

    ``t mean_i x_i + (1 - t) base`` with ``t = N c / (1 + (N - 1) c)`` for N models and c the mean cosine between their
    task vectors, tensor by tensor. The paper has angles of up to 90 degrees; beyond, c counts as 0.
    """
    count = len(stack.models)
    if count == 1:
        return stack.combine([1.0])
    gram = stack.gram()
    norms = np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    cosines = np.divide(gram, norms, out=np.zeros_like(gram), where=norms > 0)
    above = cosines[np.triu_indices(count, 1)]
    cosine = max(float(above.mean()), 0.0)
    share = count * cosine / (1 + (count - 1) * cosine)
    return stack.combine([share / count] * count, base=1 - share)
