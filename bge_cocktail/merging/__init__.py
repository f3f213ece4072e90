"""Many encoders into one: streamed, without torch."""

from bge_cocktail.merging.checkpoints import open_checkpoint
from bge_cocktail.merging.checks import check_same_shape
from bge_cocktail.merging.methods import merge_methods
from bge_cocktail.merging.streaming import Merged, merge
from bge_cocktail.merging.weights import cocktail_weights, example_loss

__all__ = [
    "Merged",
    "check_same_shape",
    "cocktail_weights",
    "example_loss",
    "merge",
    "merge_methods",
    "open_checkpoint",
]
