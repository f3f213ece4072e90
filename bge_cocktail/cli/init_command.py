"""``bge-cocktail init``."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from bge_cocktail.cli.flags import PATH


@click.command("init")
@click.argument("file", type=PATH, default=Path("run.toml"))
@click.option("--overwrite", is_flag=True, help="Replace the file if there is one.")
def command(file: Path, overwrite: bool) -> None:
    """Write a run file with every option, its default and its help.

    FILE is run.toml without a name.
    """
    from bge_cocktail.errors import UsageError
    from bge_cocktail.outputs import new_file
    from bge_cocktail.runfile import commented_run_file

    if file.exists() and not overwrite:
        raise UsageError(f"{file} exists already; choose another name or add --overwrite")
    with new_file(file) as working:
        working.write_text(commented_run_file(), encoding="utf-8")
    click.echo(f"wrote {file}; set data.train and the tasks in it, then: bge-cocktail run {file}")
