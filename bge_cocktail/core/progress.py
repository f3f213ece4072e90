"""Progress of long work: the library announces it, whoever runs the library may show it.

The library is quiet by itself; the command line installs a reporter that draws bars on standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol


class Advance(Protocol):
    """Takes the steps that were just done, and in a few words what is going on now."""

    def __call__(self, steps: int, now: str = "", /) -> None: ...


Reporter = Callable[[str, int], AbstractContextManager[Advance]]


def _nothing(_steps: int, _now: str = "", /) -> None:
    return None


def _quiet(_description: str, _total: int) -> AbstractContextManager[Advance]:
    return nullcontext(_nothing)


_reporter: ContextVar[Reporter] = ContextVar("progress_reporter", default=_quiet)


def progress(description: str, total: int) -> AbstractContextManager[Advance]:
    """Announce work of `total` steps; the context gives a function to call with the steps just done."""
    return _reporter.get()(description, total)


@contextmanager
def report_progress_to(reporter: Reporter) -> Iterator[None]:
    """Show all progress inside this context through `reporter`."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)
