"""Progress bars on standard error, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from bge_cocktail.progress import Advance, Reporter


def on_terminal() -> Reporter:
    """A reporter that draws bars if standard error is a terminal, and is quiet otherwise."""
    if not sys.stderr.isatty():
        return _quiet
    shown: list[object] = []

    @contextmanager
    def report(description: str, total: int) -> Iterator[Advance]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        # only the outermost work draws: a bar within a bar flickers
        if shown:
            yield lambda _steps: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            shown.append(bars)
            task = bars.add_task(description, total=total)
            try:
                yield lambda steps: bars.advance(task, steps)
            finally:
                shown.pop()

    return report


def _quiet(_description: str, _total: int) -> AbstractContextManager[Advance]:
    return nullcontext(lambda _steps: None)
