"""A group whose commands are imported when they are called."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import rich_click as click


class LazyGroup(click.RichGroup):
    """Commands that are imported when they are called.

    Args:
        homes: For each command, ``module:name`` of what is called.
        summaries: For each command, the first line of its help; without them, listing the commands imports them.
    """

    def __init__(
        self, *arguments: Any, homes: Mapping[str, str], summaries: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(*arguments, **more)
        self._homes = homes
        self._summaries = summaries
        self._listing = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._homes)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._homes:
            return None
        if self._listing and self._summaries is not None:
            return click.RichCommand(name=cmd_name, help=self._summaries[cmd_name])
        module, _, name = self._homes[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def format_help(self, ctx: click.RichContext, formatter: click.RichHelpFormatter) -> None:  # type: ignore[override]
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from bge_cocktail.core.errors import nearest

        if args and not args[0].startswith("-") and args[0] not in self._homes:
            raise click.UsageError(f"no command '{args[0]}'.{nearest(args[0], self._homes)}", ctx)
        return super().resolve_command(ctx, args)
