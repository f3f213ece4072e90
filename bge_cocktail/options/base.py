"""What all options share: types that users write as words, and errors that name the place and the nearest name."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from bge_cocktail.core.errors import UsageError, nearest

NAMED_PROMPTS = {
    # the instruction that the English BGE models were trained with, for queries only
    "bge-en": "Represent this sentence for searching relevant passages: ",
    "bge-zh": "为这个句子生成表示以用于检索相关文章：",
    "e5-query": "query: ",
    "e5-document": "passage: ",
    "none": "",
}


def _prompt(value: object) -> object:
    if not isinstance(value, str) or value in NAMED_PROMPTS:
        return NAMED_PROMPTS[value] if isinstance(value, str) else value
    close = difflib.get_close_matches(value.lower(), NAMED_PROMPTS, n=1, cutoff=0.85)
    if close and not re.search(r"[:\s]", value):  # a prompt of that very text would be strange
        raise ValueError(f"no prompt of that name. Did you mean '{close[0]}'?")
    return value


def _comma_separated(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _list_of_one(value: object) -> object:
    return [value] if isinstance(value, str | Path) else value


def _all_shares(value: list[float]) -> list[float]:
    if wrong := [share for share in value if not 0 <= share <= 1]:
        raise ValueError(f"shares are between 0 and 1, got {wrong}")
    return value


def _all_above_0(value: list[float]) -> list[float]:
    if wrong := [number for number in value if number <= 0]:
        raise ValueError(f"numbers above 0 are expected, got {wrong}")
    return value


def _none_word(value: object) -> object:
    return None if value == "none" else value


# a limit with a default needs a word to turn it off, for TOML and flags have no null
Limit = Annotated[float | None, BeforeValidator(_none_word)]


Prompt = Annotated[str | None, BeforeValidator(_prompt)]
Shares = Annotated[list[float], BeforeValidator(_comma_separated), AfterValidator(_all_shares)]
Integers = Annotated[list[int], BeforeValidator(_comma_separated)]
Numbers = Annotated[list[float], BeforeValidator(_comma_separated)]
PositiveNumbers = Annotated[list[float], BeforeValidator(_comma_separated), AfterValidator(_all_above_0)]
Direction = Literal["query-document", "query-query", "document-query", "document-document"]
Directions = Annotated[list[Direction], BeforeValidator(_comma_separated)]
Names = Annotated[list[str], BeforeValidator(_comma_separated)]
Paths = Annotated[list[Path], BeforeValidator(_list_of_one)]
Packed = Literal["auto", "on", "off"]
LIMIT_HELP = "for a first try: only so many {what}, evenly spread over all"
PACKED_HELP = "whether the texts of a batch are one stream without padding; auto: on a GPU in half precision"
PROMPT_HELP = "a text, or one of " + ", ".join(NAMED_PROMPTS) + "; without it, what the model declares"


class Options(BaseModel):
    """What all options share: they don't change, and unknown names are errors."""

    panels: ClassVar[dict[str, str]] = {}
    """The parts of a command's help: for each title, the names of its options, with spaces between."""
    common: ClassVar[str] = ""
    """The options that the short help shows, with spaces between; without any, all are shown."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PluginOptions(Options):
    """Options of a step whose functions other packages may bring, with options of their own."""

    plugin_options: dict[str, Any] = Field(
        default_factory=dict,
        description="options that a method, weighting or task of another package brings along, by name",
    )

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # outputs made without plugins are the same, whatever this version can do
        values: dict[str, Any] = handler(self)
        if not values.get("plugin_options", True):
            del values["plugin_options"]
        return values


def checked(model: type[Options], values: dict[str, Any], where: dict[str, str] | None = None) -> Any:
    """Build options from plain values; all that is wrong is said at once.

    Args:
        model: The options model.
        values: Names and values, nested for sections.
        where: For a dotted name, where the user wrote it (``run.toml:7``).

    Returns:
        An instance of `model`.

    Raises:
        UsageError: With a line for each wrong name or value.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UsageError("\n".join(_explain(model, problem, where or {}) for problem in error.errors())) from None


def field_names(model: type[BaseModel], path: tuple[str, ...] = ()) -> list[str]:
    """Return the names allowed in a (nested) section; empty when the path leads to no section."""
    parts = iter(path)
    for part in parts:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if get_origin(annotation) is dict:  # of options by names that the user chose
            annotation = get_args(annotation)[1]
            next(parts, None)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def is_table(model: type[BaseModel], path: tuple[str, ...]) -> bool:
    """Return whether a path leads to a table of options by names that the user chooses."""
    *section, name = path or ("",)
    holder: Any = model
    for part in section:
        holder = holder.model_fields[part].annotation if part in getattr(holder, "model_fields", {}) else None
    fields = getattr(holder, "model_fields", {})
    return name in fields and get_origin(fields[name].annotation) is dict


def _explain(model: type[Options], error: Any, where: dict[str, str]) -> str:
    # pydantic adds the branch of a union or the index in a list to the location; users wrote only names
    path: list[str] = []
    for part in error["loc"]:
        if isinstance(part, str) and part.isidentifier() and not part.startswith("function"):
            path.append(part)
        else:
            break
    if error["type"] != "extra_forbidden":
        while path and path[-1] not in field_names(model, tuple(path[:-1])):
            path.pop()
    name = ".".join(path)
    place = next((where[key] for key in (name, *_parents(path)) if key in where), "")
    prefix = f"{place}: " if place else ""
    if error["type"] == "extra_forbidden":
        allowed = field_names(model, tuple(path[:-1]))
        return f"{prefix}unknown name '{name}'.{nearest(path[-1], allowed)}"
    if error["type"] == "missing":
        return f"{prefix}'{name}' is missing: {_help(model, path)}"
    message = error["msg"].removeprefix("Value error, ")
    seen = "" if isinstance(error["input"], dict) else f" (got {error['input']!r})"
    return f"{prefix}{name + ': ' if name else ''}{message}{seen}"


def _parents(path: list[str]) -> list[str]:
    return [".".join(path[:end]) for end in range(len(path) - 1, 0, -1)]


def _help(model: type[BaseModel], path: list[str]) -> str:
    for part in path[:-1]:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    return model.model_fields[path[-1]].description or "needed"
