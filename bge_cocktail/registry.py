"""Named functions: a dict filled by a decorator, and by other packages through entry points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from bge_cocktail.errors import UsageError, nearest

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """A table of named entries of one kind.

    Another package adds to it with an entry point in the group ``bge_cocktail.<kind>``; those are loaded
    the first time that the table is read.

    Args:
        kind: What the entries are, in the plural with hyphens: ``merge-methods``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._traits: dict[str, dict[str, Any]] = {}
        self._plugins_loaded = False

    def __call__(self, name: str, **traits: Any) -> Callable[[T], T]:
        """Decorator that adds its function under `name`, with what others need to know of it."""

        def add(entry: T) -> T:
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
        """What was said of an entry when it was added; a plugin says it with attributes of its function."""
        return self._traits.get(name, {}).get(trait, getattr(self[name], trait, default))

    def describe(self) -> dict[str, str]:
        """The first line of each entry's docstring, by name."""
        return {name: (self[name].__doc__ or "").strip().split("\n")[0] for name in self}

    def _all(self) -> dict[str, T]:
        if not self._plugins_loaded:
            self._plugins_loaded = True
            for point in entry_points(group=f"bge_cocktail.{self.kind}"):
                self(point.name)(point.load())
        return self._entries
