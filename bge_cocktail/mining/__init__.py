"""Hard negatives: documents that rank high for a query and are not relevant."""

from bge_cocktail.mining.audit import Audit, false_negatives
from bge_cocktail.mining.candidates import candidate_sources
from bge_cocktail.mining.choosing import choices
from bge_cocktail.mining.filters import negative_filters
from bge_cocktail.mining.mine import Mined, check_mining, distinct_texts, mine

__all__ = [
    "Audit",
    "Mined",
    "candidate_sources",
    "check_mining",
    "choices",
    "distinct_texts",
    "false_negatives",
    "mine",
    "negative_filters",
]
