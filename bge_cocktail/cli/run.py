"""``bge-cocktail run``, ``init`` and ``demo``."""

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
    from bge_cocktail.cli.show import show_outcome, training
    from bge_cocktail.flow.flow import Flow
    from bge_cocktail.options import read_run_file
    from bge_cocktail.report.text import text_table

    flow = Flow(read_run_file(file, settings))
    if dry_run:
        steps = flow.plan()
        show(dict(steps), text_table(("step", "state"), steps), output_format)
        return
    with training(flow.options.train.device):
        outcome = flow.run()
    show_outcome(outcome, output_format)


@click.command("init")
@click.argument("file", type=PATH, default=Path("run.toml"))
@click.option("--overwrite", is_flag=True, help="Replace the file if there is one.")
def init(file: Path, overwrite: bool) -> None:
    """Write a run file with every option, its default and its help.

    FILE is run.toml without a name.
    """
    from bge_cocktail.core.outputs import new_file, refuse_to_replace_file
    from bge_cocktail.options import commented_run_file

    refuse_to_replace_file(file, overwrite)
    with new_file(file) as working:
        working.write_text(commented_run_file(), encoding="utf-8")
    click.echo(f"wrote {file}; set data.train and the tasks in it, then: bge-cocktail run {file}")


@click.command("demo")
@click.option("-o", "--output", type=PATH, default=Path("runs/demo"), show_default=True, help="The folder of the run.")
@format_flag
def demo(output: Path, output_format: str) -> None:
    """Do the whole flow on a real model and built-in data, offline, in minutes.

    The target is the handbook of an invented factory, full of words that the model can't know; the general tasks
    are everyday questions, sentiment and topics. A second call does nothing again that is done.
    """
    from bge_cocktail.cli.show import show_outcome, training
    from bge_cocktail.flow.demo import demo_run
    from bge_cocktail.flow.flow import Flow

    options = demo_run(output)
    with training(options.train.device):
        outcome = Flow(options).run()
    show_outcome(outcome, output_format)
