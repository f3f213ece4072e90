"""What mining decided for one query, as a table."""

from __future__ import annotations

from bge_cocktail.mining import Audit
from bge_cocktail.report.table import shortened, text_table

SHOWN = 12


def audit_text(audit: Audit) -> str:
    """The query, its positives, and its candidates by rank with what became of each."""
    chosen = [one for one in audit.candidates if one.decision == "chosen"]
    others = [one for one in audit.candidates if one.decision != "chosen"][: max(0, SHOWN - len(chosen))]
    shown = sorted([*chosen, *others], key=lambda one: one.rank)
    rows = [["positive", "-", f"{similarity:.4f}", "-", shortened(text)] for text, similarity in audit.positives]
    rows += [[one.decision, str(one.rank), f"{one.similarity:.4f}", one.source, shortened(one.text)] for one in shown]
    table = text_table(("decision", "rank", "similarity", "source", "text"), rows)
    more = len(audit.candidates) - len(shown)
    return f"query: {shortened(audit.query, 100)}\n{table}" + (f"\n... and {more} candidates more" if more else "")
