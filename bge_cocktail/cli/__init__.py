"""The command line: read, call one function, show."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# before any of the libraries is imported: no telemetry, and no bars but ours
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import rich_click as click

from bge_cocktail import __version__
from bge_cocktail.cli.lazy import LazyGroup
from bge_cocktail.errors import CocktailError, explain_os_error

COMMANDS = (
    "demo",
    "init",
    "run",
    "prepare",
    "mine",
    "train",
    "inspect",
    "merge",
    "evaluate",
    "compare",
    "report",
    "leaderboard",
    "indexes",
    "classify",
    "list",
)


class Commands(LazyGroup):
    """Errors without tracebacks; what is made notes the command."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **settings: Any) -> Any:
        from bge_cocktail.provenance import started_as

        words = sys.argv[1:] if args is None else list(args)
        with started_as(words, os.environ):
            return super().main(words, *more, **settings)

    def invoke(self, ctx: click.Context) -> object:  # noqa: RET503  (ctx.exit never returns)
        from bge_cocktail.cli.progress_bars import on_terminal
        from bge_cocktail.progress import report_progress_to

        _log_to_stderr()
        try:
            with _terminated_as_interrupted(), report_progress_to(on_terminal()):
                return super().invoke(ctx)
        except CocktailError as error:
            message, code = str(error), error.exit_code
        except KeyboardInterrupt:
            message, code = "interrupted; no output was left half-written", 130
        except BrokenPipeError:
            raise
        except OSError as error:
            message, code = explain_os_error(error), 1
        # a plain line and no box, so that file:line stays whole in logs and editors
        click.echo(f"Error: {message}", err=True)
        ctx.exit(code)


@click.group(
    cls=Commands,
    homes={name: f"bge_cocktail.cli.{name}_command" for name in COMMANDS},
    context_settings={"auto_envvar_prefix": "BGE_COCKTAIL", "help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="bge-cocktail")
def main() -> None:
    """Tune text-embedding models on your own data without losing what they already knew."""


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, which schedulers send, ends a command as Ctrl-C does: what is half-written is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return prefix + record.getMessage()


class _ToStderr(logging.Handler):
    """Writes through click, so that lines go above a progress bar and into a test runner's capture."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


def _log_to_stderr() -> None:
    log = logging.getLogger("bge_cocktail")
    if not any(isinstance(handler, _ToStderr) for handler in log.handlers):
        handler = _ToStderr()
        handler.setFormatter(_Plain())
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
