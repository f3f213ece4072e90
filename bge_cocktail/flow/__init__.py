"""The whole flow from a run file."""

from bge_cocktail.flow.flow import Flow, run

__all__ = ["Flow", "run"]
