"""Named functions: a dict filled by a decorator, and by other packages through entry points."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from bge_cocktail.core.errors import UsageError, nearest

T = TypeVar("T")
log = logging.getLogger(__name__)


class Registry(Mapping[str, T]):
    """A table of named entries of one kind.

    Another package adds to it with an entry point in the group ``bge_cocktail.<kind>``. Modules of this package and
    entry points are imported the first time that the table is read; an entry point that can't be imported, or whose
    name is taken, is warned of in one line and left out.

    Args:
        kind: What the entries are, in the plural with hyphens: ``merge-methods``.
        modules: Names of this package's own modules that add entries.
        base: The class that entries are instances of, where they are objects.
    """

    def __init__(self, kind: str, modules: Sequence[str] = (), base: type | None = None) -> None:
        self.kind = kind
        self._base = base
        self._modules = modules
        self._entries: dict[str, T] = {}
        self._traits: dict[str, dict[str, Any]] = {}
        self._complete = False

    def __call__(self, name: str, **traits: Any) -> Callable[[T], T]:
        """Return a decorator that adds its function under `name`, with what others need to know of it."""

        def add(entry: T) -> T:
            if self._base is not None and not isinstance(entry, self._base):
                raise TypeError(f"{entry!r} is no {self._base.__name__}")
            if name in self._entries:
                raise ValueError(f"{self.kind}: '{name}' is registered already")
            self._entries[name] = entry
            self._traits[name] = traits
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        entries = self._all()
        if name not in entries:
            raise UsageError(f"no '{name}' among the {self.kind}.{nearest(name, entries)}")
        return entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._all()))

    def __len__(self) -> int:
        return len(self._all())

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def trait(self, name: str, trait: str, default: Any = None) -> Any:
        """Return what was said of an entry when it was added; a plugin says it with attributes of its function."""
        entry = self[name]  # traits come with the modules that add entries
        return self._traits.get(name, {}).get(trait, getattr(entry, trait, default))

    def describe(self) -> dict[str, str]:
        """Return the first line of each entry's docstring, by name."""
        return {name: (self[name].__doc__ or "").strip().split("\n")[0] for name in self}

    def _all(self) -> dict[str, T]:
        if not self._complete:
            self._complete = True
            for module in self._modules:
                import_module(module)
            for point in entry_points(group=f"bge_cocktail.{self.kind}"):
                self._add_plugin(point)
        return self._entries

    def _add_plugin(self, point: EntryPoint) -> None:
        package = point.dist.name if point.dist is not None else point.value
        try:
            self(point.name)(point.load())
        except Exception as error:  # whatever another package's code raises, this one goes on
            log.warning(
                "the package %s can't add '%s' to the %s (%s: %s) and is left out",
                package,
                point.name,
                self.kind,
                type(error).__name__,
                str(error).split("\n")[0],
            )


def keyword_names(function: Callable[..., Any]) -> list[str]:
    """Return the names that a function takes by keyword alone."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


def own_options(function: Callable[..., Any], known: Collection[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of those options that a registered function brings along in its signature.

    Such an option is a keyword of the function that no options model has; its type is the annotation, its default the
    one in the signature.

    Args:
        function: A registered function.
        known: Options that it is handed anyway.
        given: What the user said, as text or as values; names of other functions' options are passed over.

    Raises:
        UsageError: A value of the wrong type, or none where the function has no default.
    """
    from pydantic import TypeAdapter, ValidationError

    parameters = inspect.signature(function).parameters
    values: dict[str, Any] = {}
    for name in keyword_names(function):
        if name in known:
            continue
        if name in given:
            try:
                values[name] = TypeAdapter(_annotation(function, name)).validate_python(given[name])
            except ValidationError as error:
                raise UsageError(f"option {name}: {error.errors()[0]['msg']} (got {given[name]!r})") from None
        elif parameters[name].default is inspect.Parameter.empty:
            raise UsageError(f"the option '{name}' is missing: `option={name}=VALUE`")
    return values


def _annotation(function: Callable[..., Any], name: str) -> Any:
    """Return the type of a parameter; Any where there is none, or its name isn't there at run time."""
    annotation = inspect.signature(function).parameters[name].annotation
    if isinstance(annotation, str):
        try:
            return eval(annotation, getattr(inspect.unwrap(function), "__globals__", {}))
        except NameError:
            return Any
    return Any if annotation is inspect.Parameter.empty else annotation


def refuse_unknown_options(
    functions: Sequence[Callable[..., Any]], known: Collection[str], given: Mapping[str, Any]
) -> None:
    """Raise unless some function brings along each option that was given; see `own_options`.

    Raises:
        UsageError: With the nearest name.
    """
    taken = sorted({name for function in functions for name in keyword_names(function)} - set(known))
    for name in given:
        if name not in taken:
            brought = f"; there are {', '.join(taken)}" if taken else ", which bring none along"
            raise UsageError(f"no option '{name}' of the functions chosen{brought}.{nearest(name, taken)}")
