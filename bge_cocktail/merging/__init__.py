"""Many encoders into one: streamed, without torch."""

from bge_cocktail.merging import data_methods, sparse_methods  # noqa: F401  (they register themselves)
from bge_cocktail.merging.checkpoints import read_checkpoint
from bge_cocktail.merging.checks import check_alike
from bge_cocktail.merging.methods import merge_methods
from bge_cocktail.merging.opening import open_model
from bge_cocktail.merging.recipe import Recipe, read_recipe
from bge_cocktail.merging.streaming import Merged, merge, plan_merge
from bge_cocktail.merging.weights import weightings

__all__ = [
    "Merged",
    "Recipe",
    "check_alike",
    "merge",
    "merge_methods",
    "open_model",
    "plan_merge",
    "read_checkpoint",
    "read_recipe",
    "weightings",
]
