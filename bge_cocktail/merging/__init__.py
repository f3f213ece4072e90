"""Many encoders into one: streamed, without torch."""

from bge_cocktail.merging.methods import merge_methods
from bge_cocktail.merging.streaming import Merged, merge
from bge_cocktail.merging.weights import cocktail_weights, example_loss

__all__ = ["Merged", "cocktail_weights", "example_loss", "merge", "merge_methods"]
