"""``bge-cocktail list``."""

from __future__ import annotations

from importlib import import_module

import rich_click as click

from bge_cocktail.cli.flags import format_flag, show

# where each registry is
KINDS = {
    "merge-methods": ("merging", "merge_methods"),
    "weightings": ("merging", "weightings"),
    "tasks": ("tasks", "tasks"),
    "measures": ("ranking", "measures"),
    "indexes": ("indexes", "indexes"),
    "losses": ("losses", "losses"),
    "cleaning-steps": ("preparing", "cleaning_steps"),
    "language-detectors": ("preparing", "language_detectors"),
    "duplicate-finders": ("preparing", "duplicate_finders"),
    "augmentations": ("preparing", "augmentations"),
    "thesauri": ("preparing", "thesauri"),
    "candidate-sources": ("mining", "candidate_sources"),
    "negative-filters": ("mining", "negative_filters"),
    "choices": ("mining", "choices"),
    "record-weightings": ("preparing", "record_weightings"),
    "report-sections": ("report.sections", "report_sections"),
}


@click.command("list")
@click.argument("kind", type=click.Choice(list(KINDS)))
@format_flag
def command(kind: str, output_format: str) -> None:
    """List what can be chosen by name."""
    from bge_cocktail.report.table import text_table

    room, name = KINDS[kind]
    described = getattr(import_module(f"bge_cocktail.{room}"), name).describe()
    show(described, text_table((kind, "what it is"), list(described.items())), output_format)
