"""What click lacks: a group whose commands are imported when they are called, a command with a short help."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
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


_ALL = "bge_cocktail.help_all"
FINER = "finer"
"""An attribute of options that the short help leaves out."""
_NARROW, _WIDE = 60, 100


class ShortHelp(click.RichCommand):
    """A command whose `--help` is short: no boxes, one line for most options, finer ones left out.

    Args:
        finer: Names of parameters that are left out, beside those that `flags_from` marks.
    """

    def __init__(self, *arguments: Any, finer: Sequence[str] = (), **more: Any) -> None:
        super().__init__(*arguments, **more)
        for parameter in self.params:
            if parameter.name in finer:
                setattr(parameter, FINER, True)
        self.params.append(
            click.Option(
                ["--help-all"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_show_all,
                help="Show all options and exit.",
            )
        )

    def format_help(self, ctx: click.RichContext, formatter: click.RichHelpFormatter) -> None:  # type: ignore[override]
        if ctx.meta.get(_ALL):
            super().format_help(ctx, formatter)
            return
        width = min(max(_NARROW, ctx.terminal_width or shutil.get_terminal_size().columns), _WIDE)
        short = click.HelpFormatter(width=width)
        short.write_usage(ctx.command_path, " ".join(self.collect_usage_pieces(ctx)))
        short.write_paragraph()
        with short.indentation():
            short.write_text(" ".join((self.help or "").partition("\f")[0].split()))
        shown = [one for one in self.params if isinstance(one, click.Option) and not getattr(one, FINER, False)]
        with short.section("Options"):
            short.write_dl([_line(one) for one in sorted(shown, key=lambda one: not one.required)])
        finer = sum(bool(getattr(one, FINER, False)) for one in self.params)
        if finer:
            short.write_paragraph()
            short.write_text(f"{finer} more options: {ctx.command_path} --help-all")
        formatter.write(short.getvalue())


def _line(option: click.Option) -> tuple[str, str]:
    """Return an option's names, and of its help the first part, with the default."""
    flags = ", ".join(sorted(option.opts, key=len))
    if not option.is_flag:
        flags += " " + (
            option.metavar or "/".join(getattr(option.type, "choices", ())) or option.type.name.split()[0].upper()
        )
    said = option.help or ""
    shown = re.search(r"\s*\[default: (.*)\]$", said)
    first = said[: shown.start() if shown else None].partition(";")[0].rstrip(".")
    default = shown[1] if shown else str(option.default) if option.show_default else ""
    ending = " (required)" if option.required else f" (default: {default})" if default else ""
    return flags, first + ending + "."


def _show_all(context: click.Context, _parameter: Any, given: bool) -> None:
    if given and not context.resilient_parsing:
        context.meta[_ALL] = True
        click.echo(context.get_help(), color=context.color)
        context.exit()
