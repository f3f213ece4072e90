"""Whether one model is better than another, or only luckier, and where it changed."""

from bge_cocktail.significance.changes import (
    Moved,
    by_bucket,
    likely_relevant,
    moved,
)
from bge_cocktail.significance.comparing import (
    Change,
    compare_models,
    holm,
    in_words,
    permutation_test,
    untested,
)

__all__ = [
    "Change",
    "Moved",
    "by_bucket",
    "compare_models",
    "holm",
    "in_words",
    "likely_relevant",
    "moved",
    "permutation_test",
    "untested",
]
