"""``bge-cocktail list``."""

from __future__ import annotations

import rich_click as click

from bge_cocktail.cli.flags import format_flag, show

KINDS = ("merge-methods", "tasks")


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@format_flag
def command(kind: str, output_format: str) -> None:
    """List what can be chosen by name."""
    from bge_cocktail.report.table import text_table

    if kind == "merge-methods":
        from bge_cocktail.merging.methods import merge_methods

        described = merge_methods.describe()
    else:
        from bge_cocktail.tasks import tasks

        described = tasks.describe()
    show(described, text_table((kind, "what it is"), list(described.items())), output_format)
