"""``bge-cocktail run``."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from bge_cocktail.cli.flags import PATH, format_flag, show


@click.command("run")
@click.argument("file", type=PATH)
@click.option("--set", "settings", multiple=True, metavar="A.B=C", help="Change an option of the file. Repeatable.")
@click.option("--dry-run", is_flag=True, help="Print which steps are done and which are to do; do nothing.")
@format_flag
def command(file: Path, settings: tuple[str, ...], dry_run: bool, output_format: str) -> None:
    """Do the whole flow that a run file describes: mine, train, merge, evaluate.

    A step that is finished already, with the same inputs and options, is not done again.
    """
    from bge_cocktail.cli.summary import show_outcome
    from bge_cocktail.flow import Flow
    from bge_cocktail.report.table import text_table
    from bge_cocktail.runfile import read_run_file

    flow = Flow(read_run_file(file, settings))
    if dry_run:
        steps = flow.plan()
        show(dict(steps), text_table(("step", "state"), steps), output_format)
        return
    outcome = flow.run()
    show_outcome(outcome, flow.options.evaluate, output_format)
