"""From results to what people look at."""

from bge_cocktail.report.front import draw_front
from bge_cocktail.report.heatmap import draw_heatmap
from bge_cocktail.report.table import score_table, text_table
from bge_cocktail.report.tradeoff import draw_tradeoff

__all__ = ["draw_front", "draw_heatmap", "draw_tradeoff", "score_table", "text_table"]
