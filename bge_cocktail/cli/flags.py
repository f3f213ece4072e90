"""Command-line flags made from options models, and back."""

from __future__ import annotations

import json
import shlex
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import rich_click as click
from pydantic import BeforeValidator

from bge_cocktail.cli.command_kinds import FINER
from bge_cocktail.core.errors import UsageError, options_as_flags
from bge_cocktail.options import PRESETS, RESAMPLES, Options, checked, preset_values

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
output_flag = click.option("-o", "--output", type=PATH, required=True, help="The folder to write.")
overwrite_flag = click.option("--overwrite", is_flag=True, help="Replace an older output of bge-cocktail.")
format_flag = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="A table for people, or JSON for programs.",
)
preset_flag = click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="Options that go together, before which go those that are given; see: bge-cocktail list presets",
)


def _number_at_all(_context: Any, _parameter: Any, given: float) -> float:
    """Callback of a flag: a range lets NaN through, which compares with nothing."""
    if given != given:
        raise click.BadParameter("nan is no number")
    return given


def comparing_flags(command: Command) -> Command:
    """Decorator: how models are compared, the same by default wherever they are."""
    for option in (
        click.option("--seed", type=click.IntRange(0), default=13, show_default=True, help="Seeds what is drawn."),
        click.option(
            "--resamples",
            type=click.IntRange(100, 1_000_000),
            default=RESAMPLES,
            show_default=True,
            help="Draws of tests and intervals.",
        ),
        click.option(
            "--confidence",
            type=click.FloatRange(0.5, 0.9999),
            callback=_number_at_all,
            default=0.95,
            show_default=True,
            help="Of intervals; a change counts from a corrected p below 1 minus this.",
        ),
        click.option("--baseline", help="The model that the others are compared with; the first without it."),
    ):
        command = option(command)
    return command


def flags_from(*models: type[Options]) -> Callable[[Command], Command]:
    """Decorator: one flag for each option of the models; a name that two models share is one flag."""

    def add(command: Command) -> Command:
        fields = {name: field for model in reversed(models) for name, field in model.model_fields.items()}
        panel_of = {
            name: title for model in reversed(models) for title, names in model.panels.items() for name in names.split()
        }
        common = {name for model in models for name in (model.common.split() or model.model_fields)}
        for name, field in reversed(fields.items()):
            if get_origin(field.annotation) is dict:  # tables have flags of their own kind
                continue
            flag = "--" + name.replace("_", "-")
            # where pydantic first reads a text of its own form ("none", "1,2"), click must let it through
            own_form = any(isinstance(validator, BeforeValidator) for validator in field.metadata)
            kind = str if own_form else _click_type(field.annotation)
            if kind is bool:
                flag = f"{flag}/--no-{name.replace('_', '-')}"
            value = field.get_default(call_default_factory=True)
            default = "" if value in (None, []) else f"  [default: {_shown(value)}]"
            description = (field.description or "").rstrip(".")
            option = click.option(
                flag,
                name,
                type=kind,
                default=None,
                panel=panel_of.get(name, "Options"),
                help=options_as_flags(description[0].upper() + description[1:] + "." + default),
            )
            command = option(command)
            if name not in common:
                setattr(command.__click_params__[-1], FINER, True)  # type: ignore[attr-defined]
        return command

    return add


def source_flags(command: Command) -> Command:
    """Decorator: how a source of data is read."""
    for option in (
        click.option("--labels", default="", help="Names for labels: 0=negative,1=positive."),
        click.option("--columns", default="", help="Which column is what: text=review,label=stars; ..."),
        click.option("--config", help="Configuration of a data set of the hub."),
    ):
        command = option(command)
    return command


def refuse_both(resume: bool, overwrite: bool) -> None:
    """Refuse to go on with an output and to begin it again.

    Raises:
        UsageError: Both are asked for.
    """
    if resume and overwrite:
        raise UsageError("--resume goes on with what is there, --overwrite begins again; give one of them")


def table_flag(flag: str, name: str, text: str) -> Callable[[Command], Command]:
    """Decorator: a flag that is given again for every entry of a table of options, ``NAME.option=value``.

    Args:
        flag: As users write it.
        name: Of the field that holds the table.
        text: The help.
    """

    def read(_context: Any, _parameter: Any, given: tuple[str, ...]) -> dict[str, dict[str, str]] | None:
        table: dict[str, dict[str, str]] = {}
        for one in given:
            place, equals, value = one.partition("=")
            entry, dot, option = place.rpartition(".")
            if not (equals and dot and entry):
                raise click.BadParameter(f"{one}: expected NAME.option=value")
            table.setdefault(entry, {})[option.strip().replace("-", "_")] = value
        return table or None

    return click.option(flag, name, multiple=True, callback=read, metavar="NAME.OPTION=VALUE", help=text)


def _read_plugin_options(_context: Any, _parameter: Any, given: tuple[str, ...]) -> dict[str, str] | None:
    values: dict[str, str] = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not (equals and name):
            raise click.BadParameter(f"{entry}: expected NAME=VALUE")
        values[name.strip().replace("-", "_")] = value
    return values or None


plugin_flag = click.option(
    "--option",
    "plugin_options",
    multiple=True,
    callback=_read_plugin_options,
    metavar="NAME=VALUE",
    help="An option that a method, weighting or task of another package brings along. Repeatable.",
)


def options_from(model: type[Options], flags: dict[str, Any]) -> Any:
    """Return the options that flags make, over those of a preset; flags of other models are passed over.

    Raises:
        UsageError: A value is out of bounds.
    """
    given = given_flags(model, flags)
    places = {name: "--" + name.replace("_", "-") for name in given}
    if (preset := flags.get("preset")) is None:
        return checked(model, given, places)
    values = preset_values(preset, model)
    return checked(model, {**values, **given}, {**dict.fromkeys(values, f"--preset {preset}"), **places})


def given_flags(model: type[Options], flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags of a model that the user gave."""
    return {name: flags[name] for name in model.model_fields if flags.get(name) is not None}


def show(
    value: Any, as_text: str, output_format: str, written: Path | None = None, then: Sequence[object] = ()
) -> None:
    """Print a result: text for people or JSON for programs.

    Args:
        value: For programs.
        as_text: For people.
        output_format: ``json`` or ``table``.
        written: What was written.
        then: The command that one would use next, in parts; words in capitals are the user's to fill in.
    """
    if output_format == "json":
        click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))
        return
    ending = [f"written: {written}"] if written is not None else []
    if then:
        ending.append(f"next:    bge-cocktail {shlex.join(map(str, then))}")
    click.echo("\n".join([as_text, *(["", *ending] if ending else [])]))


def numbers(_context: Any, _parameter: Any, given: str | None) -> list[int] | None:
    """Callback of a flag: whole numbers with commas between."""
    try:
        return None if given is None else [int(part) for part in given.split(",")]
    except ValueError:
        raise click.BadParameter(f"{given}: expected whole numbers with commas between") from None


def pairs_of(text: str) -> dict[str, str] | None:
    """Names for labels, as users write them: ``0=negative,1=positive``; None without any."""
    pairs: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        number, sign, name = (piece.strip() for piece in part.partition("="))
        if not sign or not name:
            raise click.UsageError(f"labels are said as value=name, with commas between (0=negative), got '{part}'")
        if number in pairs:
            raise click.UsageError(f"the label '{number}' is named twice: '{pairs[number]}' and '{name}'")
        if name in pairs.values():
            raise click.UsageError(f"two labels are called '{name}', which would make one class of two")
        pairs[number] = name
    return pairs or None


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(str(part) for part in default) if isinstance(default, list) else str(default)


def _click_type(annotation: Any) -> Any:
    """Return the click type of a field; whatever click doesn't know is text that pydantic checks."""
    if get_origin(annotation) in (types.UnionType, Union):
        inner = [part for part in get_args(annotation) if part is not type(None)]
        return _click_type(inner[0]) if len(inner) == 1 else str
    if get_origin(annotation) is Literal:
        return click.Choice(list(get_args(annotation)))
    if annotation is Path:
        return PATH
    return annotation if annotation in (bool, int, float) else str
