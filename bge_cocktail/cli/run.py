"""``bge-cocktail run``, ``init`` and ``demo``."""

from __future__ import annotations

import sys
from pathlib import Path

import rich_click as click

from bge_cocktail.cli.flags import PATH, format_flag, preset_flag, show


@click.command("run")
@click.argument("file", type=PATH)
@click.option("--set", "settings", multiple=True, metavar="A.B=C", help="Change an option of the file. Repeatable.")
@preset_flag
@click.option("--dry-run", is_flag=True, help="Print which steps are done and which are to do; do nothing.")
@format_flag
def command(file: Path, settings: tuple[str, ...], preset: str | None, dry_run: bool, output_format: str) -> None:
    """Do the whole flow that a run file describes: prepare, mine, train, merge, evaluate.

    A step that is finished already, with the same inputs and options, is not done again.
    """
    from bge_cocktail.cli.show import show_outcome, training
    from bge_cocktail.flow.flow import Flow
    from bge_cocktail.options import read_run_file
    from bge_cocktail.report.text import duration, text_table

    flow = Flow(read_run_file(file, settings, preset))
    if dry_run:
        steps = flow.plan()
        rows = [(step.name, step.state, "" if step.seconds is None else duration(step.seconds)) for step in steps]
        known = any(step.seconds is not None for step in steps)
        # times of this machine's last runs; without one there is nothing to say
        header = ("step", "state", "about") if known else ("step", "state")
        plan = {step.name: {"state": step.state, "seconds": step.seconds} for step in steps}
        show(plan, text_table(header, rows if known else [row[:2] for row in rows]), output_format)
        return
    with training(flow.options.train.device):
        outcome = flow.run()
    show_outcome(outcome, output_format)


@click.command("init")
@click.argument("file", type=PATH, default=Path("run.toml"))
@click.option("--data", type=PATH, help="A data set, a file of rows, or a folder of such: what is seen is filled in.")
@click.option("--general", type=PATH, multiple=True, help="A task that must not get worse. Repeatable.")
@click.option("-m", "--model", help="The model to tune: a folder or a hub name.")
@preset_flag
@click.option("--overwrite", is_flag=True, help="Replace the file if there is one.")
def init(
    file: Path,
    data: Path | None,
    general: tuple[Path, ...],
    model: str | None,
    preset: str | None,
    overwrite: bool,
) -> None:
    """Write a run file with every option, its default and its help.

    FILE is run.toml without a name. On a terminal, and without options, it asks for data, model and preset.
    """
    from bge_cocktail.core.outputs import new_file, refuse_to_replace_file
    from bge_cocktail.flow.proposal import propose_run
    from bge_cocktail.options import commented_run_file

    refuse_to_replace_file(file, overwrite)
    if _asks() and not (data or general or model or preset):
        data, general, model, preset = _ask()
    values, seen = propose_run(data, general, model, preset)
    with new_file(file) as working:
        working.write_text(commented_run_file(values), encoding="utf-8")
    for line in seen:
        click.echo(line)
    todo = "look it over" if data else "set data.train and the tasks in it"
    click.echo(f"wrote {file}; {todo}, then: bge-cocktail run {file}")


def _asks() -> bool:
    """Return whether somebody is there to answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask() -> tuple[Path | None, tuple[Path, ...], str | None, str | None]:
    """Return data, general tasks, model and preset, as answered; what has an empty answer is left open."""
    from bge_cocktail.options import PRESETS, RunOptions

    def answer(question: str, default: str = "") -> str:
        return str(click.prompt(question, default=default, show_default=bool(default), err=True)).strip()

    data = answer("Your data, a folder or a file (empty: fill it in later)")
    general = answer("Folders of tasks that must not get worse, with commas between (empty: none)")
    preset = click.prompt("Preset", type=click.Choice([*PRESETS, "none"]), default="none", err=True)
    usual = PRESETS[preset].base if preset in PRESETS else None
    model = answer("The model to tune, a folder or a hub name", usual or RunOptions.model_fields["base"].default)
    return (
        Path(data) if data else None,
        tuple(Path(name.strip()) for name in general.split(",") if name.strip()),
        model,
        None if preset == "none" else preset,
    )


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
