"""From results to what people look at."""

from bge_cocktail.report.table import score_table, text_table
from bge_cocktail.report.tradeoff import draw_tradeoff

__all__ = ["draw_tradeoff", "score_table", "text_table"]
