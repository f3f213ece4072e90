"""The options of a whole run, and the run file: read with the line of whatever is wrong, written with comments."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticUndefined

from bge_cocktail.core.errors import DataError, UsageError, nearest, options_as_settings
from bge_cocktail.core.outputs import refuse_pipe
from bge_cocktail.options.base import Options, Paths, Shares, checked, field_names, is_table
from bge_cocktail.options.prepare import PrepareOptions
from bge_cocktail.options.presets import preset_run
from bge_cocktail.options.steps import EncodeOptions, EvaluateOptions, MineOptions
from bge_cocktail.options.train import TrainOptions

PREPARED = "data"
"""What is prepared, in the folder of a run."""


class DataOptions(Options):
    """What a run works on: record files or folders, BEIR folders, folders of labelled texts."""

    train: Path = Field(description="records (JSON Lines), or a BEIR folder, whose train split is taken")
    dev: Path | None = Field(
        None, description="records or a BEIR folder (its dev split): early stopping and cocktail weights"
    )
    target: Paths = Field(default_factory=list, description="tasks tuned for")
    general: Paths = Field(default_factory=list, description="tasks that must not get worse")
    watch: Paths = Field(
        default_factory=list, description="general tasks that are also judged while training, on train.general_split"
    )


class RunPrepareOptions(PrepareOptions):
    """What is made into records first; without sources, nothing is."""

    sources: list[str] = Field(
        default_factory=list,
        description="files, folders or data sets to prepare into the run's folder; data.train, data.dev and "
        "data.target are then what comes of them, unless they are given",
    )
    columns: str = Field("", description="which column is what: text=review,label=stars; ...")
    labels: dict[str, str] = Field(default_factory=dict, description='names for labels: {0 = "negative"}')


class CocktailOptions(Options):
    """The merges that a run makes and compares."""

    share: float = Field(0.5, ge=0, le=1, description="share of the tuned model in the cocktails")
    others: list[str] = Field(default_factory=list, description="more models of the same shape for the larger cocktail")
    slices: int = Field(
        0, ge=0, le=16, description="also tune this many variants, each on its own slice of the records"
    )
    shares: Shares = Field(
        [0.0, 0.25, 0.5, 0.75, 1.0],
        description="shares of the tuned model at which the trade-off is measured; empty: not at all",
    )
    examples: int = Field(100, ge=2, description="dev records that cocktail weights are found on")
    auto: bool = Field(
        True,
        description="also make the merge with the best target score that does no harm to the general tasks, chosen on "
        "their dev splits where all have one (weights auto)",
    )
    epsilon: float = Field(0.005, ge=0, description="how much that merge's general score may lie below the base's")


class RunOptions(Options):
    """A whole run: what `bge-cocktail run FILE.toml` reads."""

    base: str = Field("BAAI/bge-small-en-v1.5", description="the model to tune: a folder or a hub name")
    output: Path = Field(Path("runs/run"), description="folder of the run")
    rounds: int = Field(
        1, ge=1, le=5, description="times that negatives are mined, each time with the model tuned on those before"
    )
    prepare: RunPrepareOptions = RunPrepareOptions()
    data: DataOptions
    encode: EncodeOptions = EncodeOptions()
    mine: MineOptions = MineOptions()
    train: TrainOptions = TrainOptions()
    merge: CocktailOptions = CocktailOptions()
    evaluate: EvaluateOptions = EvaluateOptions()

    @model_validator(mode="before")
    @classmethod
    def _data_of_what_is_prepared(cls, values: Any) -> Any:
        prepare, data = (values.get("prepare"), values.get("data", {})) if isinstance(values, dict) else (None, None)
        if not (isinstance(prepare, dict) and prepare.get("sources") and isinstance(data, dict)):
            return values
        folder = Path(str(values.get("output", cls.model_fields["output"].default))) / PREPARED
        return {**values, "data": {"train": folder, "dev": folder, "target": [folder], **data}}


def read_run_file(path: Path, settings: Sequence[str] = (), preset: str | None = None) -> RunOptions:
    """Read a run file.

    Args:
        path: A TOML file.
        settings: Changes of the form ``section.name=value``, which go before the file.
        preset: The name of options that the file goes before.

    Raises:
        DataError: No such file.
        UsageError: Broken TOML, unknown names, wrong values; each with its line.
    """
    refuse_pipe(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; bge-cocktail init writes one") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder; expected a run file") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: broken TOML: {error}") from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deep") from None
    where = {name: f"{path}:{line}" for name, line in _lines_of_names(text).items()}
    for setting in settings:
        name, value = _parse_setting(setting)
        _put(values, name, value, setting)
        where[".".join(name)] = f"--set {setting}"
    if preset is not None:
        for section, own in preset_run(preset).items():
            given = values.get(section, {} if isinstance(own, dict) else own)
            values[section] = own | given if isinstance(own, dict) and isinstance(given, dict) else given
            where.setdefault(section, f"preset {preset}")
    options: RunOptions = checked(RunOptions, values, where)
    return options


def commented_run_file(values: Mapping[str, Any] | None = None) -> str:
    """Return a run file with every option, its default and its help.

    Args:
        values: What is set in it, by section; all else is commented out, but for what has no default.
    """
    values = values or {}
    lines = [
        "# A run of bge-cocktail: prepare, mine, train, merge, evaluate. Start it with: bge-cocktail run FILE",
        "# Lines that begin with '# name =' show the defaults. Paths are relative to where the command is started.",
        "",
    ]
    sections: list[tuple[str, type[BaseModel]]] = []
    for name, field in RunOptions.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            sections.append((name, field.annotation))
        else:
            lines += _described(name, field, values)
    for name, model in sections:
        lines += ["", f"[{name}]  # {(model.__doc__ or '').strip()}"]
        for key, field in model.model_fields.items():
            lines += _described(key, field, values.get(name, {}))
    return "\n".join(lines) + "\n"


_EXAMPLES: dict[str, Any] = {
    "train": "data/my-domain",
    "dev": "data/my-domain",
    "target": ["data/my-domain"],
    "general": ["data/everyday", "data/sentiment"],
}


def _described(name: str, field: Any, values: Mapping[str, Any]) -> list[str]:
    default = field.get_default(call_default_factory=True)
    if name in values:
        shown = f"{name} = {_toml(values[name])}"
    elif not values and name in _EXAMPLES and (default is None or default is PydanticUndefined or default == []):
        shown = f"{name} = {_toml(_EXAMPLES[name])}"
    elif default is None or default is PydanticUndefined:
        shown = f"# {name} ="
    else:
        shown = f"# {name} = {_toml(default)}"
    return [f"# {options_as_settings(field.description)}", shown]


def _toml(value: Any) -> str:
    if value == {}:
        return "{}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    shown = value if isinstance(value, bool | int | float) else str(value)
    return tomli_w.dumps({"value": shown}).removeprefix("value = ").rstrip("\n")


def _lines_of_names(text: str) -> dict[str, int]:
    """Return the line of each dotted name. Only for messages, so a plain scan is enough."""
    lines: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[+\s*([\w.\-]+)\s*\]+", line):
            section = header[1] + "."
            lines.setdefault(header[1], number)
        elif key := re.match(r"\s*([\w.\-]+)\s*=", line):
            lines.setdefault(section + key[1], number)
    return lines


def _parse_setting(setting: str) -> tuple[list[str], Any]:
    name, equals, text = setting.partition("=")
    if not equals or not name.strip():
        raise UsageError(f"--set {setting}: expected section.name=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return name.strip().split("."), value


def _put(values: dict[str, Any], name: list[str], value: Any, setting: str) -> None:
    for depth, part in enumerate(name[:-1]):
        section = tuple(name[:depth])
        allowed = field_names(RunOptions, section)
        if part not in allowed and not is_table(RunOptions, section):
            raise UsageError(f"--set {setting}: no section '{part}'.{nearest(part, allowed)}")
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise UsageError(f"--set {setting}: '{part}' is not a section in the file")
    values[name[-1]] = value
