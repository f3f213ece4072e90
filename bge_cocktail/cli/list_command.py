"""``bge-cocktail list``."""

from __future__ import annotations

import rich_click as click

from bge_cocktail.cli.flags import format_flag, show

KINDS = ("merge-methods", "weightings", "tasks")


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@format_flag
def command(kind: str, output_format: str) -> None:
    """List what can be chosen by name."""
    from bge_cocktail.report.table import text_table

    if kind == "tasks":
        from bge_cocktail.tasks import tasks

        described = tasks.describe()
    else:
        from bge_cocktail.merging import merge_methods, weightings

        described = (merge_methods if kind == "merge-methods" else weightings).describe()
    show(described, text_table((kind, "what it is"), list(described.items())), output_format)
