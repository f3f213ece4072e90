"""``bge-cocktail demo``."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from bge_cocktail.cli.flags import PATH, format_flag


@click.command("demo")
@click.option("-o", "--output", type=PATH, default=Path("runs/demo"), show_default=True, help="The folder of the run.")
@format_flag
def command(output: Path, output_format: str) -> None:
    """Do the whole flow on a real model and built-in data, offline, in minutes.

    The target is the handbook of an invented factory, full of words that the model can't know; the general tasks
    are everyday questions, sentiment and topics. A second call does nothing again that is done.
    """
    from bge_cocktail.cli.summary import show_outcome
    from bge_cocktail.demo import demo_run
    from bge_cocktail.flow import Flow

    options = demo_run(output)
    show_outcome(Flow(options).run(), options.evaluate, output_format)
