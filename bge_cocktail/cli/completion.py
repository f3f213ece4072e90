"""``bge-cocktail completion``."""

from __future__ import annotations

import rich_click as click

# as click names it for a program of this name
_VARIABLE = "_BGE_COCKTAIL_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print what makes a shell complete commands, options and their values.

    bash and zsh: eval "$(bge-cocktail completion bash)" in ~/.bashrc or ~/.zshrc. fish: bge-cocktail completion fish >
    ~/.config/fish/completions/bge-cocktail.fish
    """
    from click.shell_completion import get_completion_class

    from bge_cocktail.cli import main

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    completion = kind(main, {}, "bge-cocktail", _VARIABLE)
    click.echo(completion.source_template % completion.source_vars())
