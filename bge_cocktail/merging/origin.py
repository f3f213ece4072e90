"""Whether models come from one base: weights of models trained apart have nothing to do with each other."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from bge_cocktail.merging.checkpoints import Checkpoint
from bge_cocktail.merging.plan import is_excluded, tensor_of
from bge_cocktail.merging.tensors import FLOATS, count_of
from bge_cocktail.options import Merging

log = logging.getLogger(__name__)
SAMPLE = 4096
# tuning moves weights by a few per cent (cosine above 0.95); two trainings from different starts give about 0
LEAST_COSINE = 0.5


def sampled_cosine(one: Checkpoint, other: Checkpoint, options: Merging | None = None) -> float | None:
    """The cosine between the matrices of two models, from some numbers of each.

    Vectors (biases, norms) are left out: they are alike in all models. None where there are no matrices.
    """
    products = np.zeros(3)
    for key, tensor in one.tensors.items():
        if tensor.dtype not in FLOATS or len(tensor.shape) < 2 or (options and is_excluded(key, options)):
            continue
        if key not in other.tensors and key not in other.aliases:
            continue
        count = count_of(tensor)
        sample = np.empty((2, min(SAMPLE, count)), np.float32)
        first = (count - sample.shape[1]) // 2
        tensor.read(first, sample[0])
        tensor_of(other, key).read(first, sample[1])
        a, b = sample.astype(np.float64)
        products += [float(a @ b), float(a @ a), float(b @ b)]
    size = np.sqrt(products[1] * products[2])
    return float(products[0] / size) if size > 0 else None


def warn_of_other_origins(checkpoints: Sequence[Checkpoint], options: Merging) -> None:
    """Warn of models that can't have been tuned from one base, with the figure."""
    for other in checkpoints[1:]:
        cosine = sampled_cosine(checkpoints[0], other, options)
        if cosine is not None and cosine < LEAST_COSINE:
            log.warning(
                "%s and %s don't seem to be tuned from one base: the cosine between their weights is %.2f, where "
                "tuning leaves more than 0.9; a merge of such models is mostly noise",
                checkpoints[0].name,
                other.name,
                cosine,
            )
