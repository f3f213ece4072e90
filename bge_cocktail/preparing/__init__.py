"""From messy data to clean, split, leak-free records."""

from bge_cocktail.preparing.augmenting import augmentations
from bge_cocktail.preparing.cleaning import cleaning_steps, language_detectors
from bge_cocktail.preparing.duplicates import duplicate_finders
from bge_cocktail.preparing.prepare import prepare
from bge_cocktail.preparing.source import Source
from bge_cocktail.preparing.weighing import record_weightings
from bge_cocktail.preparing.wordnet import thesauri

__all__ = [
    "Source",
    "augmentations",
    "cleaning_steps",
    "duplicate_finders",
    "language_detectors",
    "prepare",
    "record_weightings",
    "thesauri",
]
