"""``bge-cocktail classify``: train, predict, evaluate."""

from __future__ import annotations

from importlib import import_module

import rich_click as click

COMMANDS = ("train", "predict", "evaluate")


class Commands(click.RichGroup):
    """Commands that are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"bge_cocktail.cli.classify_{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from bge_cocktail.errors import nearest

        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise click.UsageError(f"no command 'classify {args[0]}'.{nearest(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


@click.group("classify", cls=Commands)
def command() -> None:
    """Train classifiers on an encoder, judge them, predict with them."""
