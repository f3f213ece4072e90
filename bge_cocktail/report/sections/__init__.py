"""The parts of a report: each a function from what runs hold to a section, or to nothing."""

from bge_cocktail.report.sections import changes, data, maps, merging, provenance, scores, training  # noqa: F401
from bge_cocktail.report.sections.registry import report_sections

__all__ = ["report_sections"]
