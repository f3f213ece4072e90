"""The command line: read, call one function, show."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

# before any of the libraries is imported: no telemetry, and no bars but ours
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import rich_click as click
from click.exceptions import Exit

from bge_cocktail.cli.command_kinds import LazyGroup
from bge_cocktail.core.errors import (
    CocktailError,
    explain_os_error,
    options_as_flags,
    options_as_settings,
    printable,
)
from bge_cocktail.core.progress import Advance, Reporter
from bge_cocktail.core.version import __version__

log = logging.getLogger(__name__)
# the first line of each command's help, so that listing them imports none
SUMMARIES = {
    "demo": "Do the whole flow on a real model and built-in data, offline, in minutes.",
    "init": "Write a run file with every option, its default and its help.",
    "run": "Do the whole flow that a run file describes: prepare, mine, train, merge, evaluate.",
    "prepare": "Clean, de-duplicate, split and check data.",
    "synthesize": "Make queries, records and a task from documents alone.",
    "mine": "Find hard negatives for records.",
    "train": "Tune an encoder on records with a contrastive loss.",
    "update": "Bring a tuned model up to date with new records, without tuning on all of them again.",
    "inspect": "Say what differs between models, and which of them can be merged.",
    "merge": "Merge models of the same form into one.",
    "evaluate": "Judge models on target and general tasks.",
    "compare": "Say which models are measurably better or worse than another, task by task.",
    "report": "Show runs on one page: scores, what changed and where, curves, merges, data, and what made each number.",
    "leaderboard": "Put mteb's results of several models into one table, with the averages of its leaderboard.",
    "indexes": "Judge indexes for a RAG: what each finds of the exact search's documents, its size and its speed.",
    "doctor": "Look a model over: its faults, and what each reader will make of it.",
    "plug": "Print the lines by which a framework uses a model with its prompts, length and dimensions.",
    "serve": "Serve models over HTTP: OpenAI's embeddings, reranking, classification.",
    "export": "Write a model in the form of another program: ONNX, OpenVINO, GGUF, int8, and judge it first.",
    "push": "Upload a model folder to the hub as owner/name; what goes is shown first.",
    "classify": "Train classifiers on an encoder, judge them, predict with them.",
    "list": "List what can be chosen by name.",
    "completion": "Print what makes bash, zsh or fish complete commands and options.",
}
# the home of each command, imported when it is called
COMMANDS = {
    **{name: f"bge_cocktail.cli.{name}:command" for name in SUMMARIES},
    "demo": "bge_cocktail.cli.run:demo",
    "init": "bge_cocktail.cli.run:init",
    # a module called list would hide the built-in in this one
    "list": "bge_cocktail.cli.registries:command",
    "completion": "bge_cocktail.cli.registries:completion",
}


# for the commands that read only what prepare writes
_PREPARE_FIRST = " (an option of `bge-cocktail prepare SOURCE -o FOLDER`, which writes what can be read here)"
UNFORESEEN = "something that was not foreseen"


class Commands(LazyGroup):
    """Errors without tracebacks; what is made notes the command."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **settings: Any) -> Any:
        from bge_cocktail.core.runs import started_as

        words = sys.argv[1:] if args is None else list(args)
        for word in words:
            try:
                word.encode()
            except UnicodeEncodeError:  # bytes of the command line that are no UTF-8 come as halves of characters
                click.echo(f"Error: the argument {word!a} is no UTF-8", err=True)
                sys.exit(2)
        # the interpreter ends at once: it would look through all objects again, for 2 to 3 s after a training
        atexit.register(gc.freeze)
        with started_as(words, os.environ):
            try:
                return super().main(words, *more, **settings)
            except SystemExit as end:
                if processes := sys.modules.get("bge_cocktail.training.engine.processes"):
                    processes.end_process(end.code)
                raise

    def invoke(self, ctx: click.Context) -> object:  # noqa: RET503  (ctx.exit never returns)
        from bge_cocktail.core.progress import report_progress_to

        _log_to_stderr()
        shown = nullcontext() if ctx.params.get("debug") else _warnings_as_lines()
        try:
            with shown, _terminated_as_interrupted(), report_progress_to(on_terminal()):
                return super().invoke(ctx)
        except CocktailError as error:
            message, code = _in_words_of_user(str(error)), error.exit_code
        except KeyboardInterrupt:
            message, code = "interrupted; no output was left half-written", 130
        except BrokenPipeError:
            raise
        except OSError as error:
            message, code = explain_os_error(error), 1
        except (click.ClickException, click.Abort, Exit):
            raise
        except BaseException as error:
            # what Rust panics of is no Exception
            if ctx.params.get("debug") or not (
                isinstance(error, Exception) or type(error).__name__ == "PanicException"
            ):
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            message, code = f"{UNFORESEEN} ({reason}); for all of it: bge-cocktail --debug {ctx.invoked_subcommand}", 1
            if isinstance(error, RuntimeError) and "Symlink loop" in reason:  # as pathlib says it before Python 3.13
                message = f"a link leads back to itself: {str(error).rpartition(' from ')[2]}"
        # a plain line and no box, so that file:line stays whole in logs and editors
        click.echo(f"Error: {printable(message)}", err=True)
        ctx.exit(code)


@click.group(
    cls=Commands,
    homes=COMMANDS,
    summaries=SUMMARIES,
    context_settings={"auto_envvar_prefix": "BGE_COCKTAIL", "help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="bge-cocktail")
@click.option("--debug", is_flag=True, help="Show the whole traceback of what was not foreseen.")
def main(debug: bool) -> None:
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


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """What libraries warn of is a line like our own warnings, without the place in their code."""

    def show(message: Warning | str, category: type[Warning], *_place: Any, **_more: Any) -> None:
        if not issubclass(category, DeprecationWarning | PendingDeprecationWarning | FutureWarning):
            log.warning("%s", " ".join(str(message).split()))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return prefix + printable(_in_words_of_user(record.getMessage()))


def _in_words_of_user(message: str) -> str:
    # the context is not there in other threads, whose messages speak of flags then
    context = click.get_current_context(silent=True)
    of_run_file = context is not None and context.find_root().invoked_subcommand == "run"
    if of_run_file:
        return options_as_settings(message)
    if "`" not in message:
        return message
    said = options_as_flags(message, _option_names())
    return said + _PREPARE_FIRST if "--columns" in said and not _has_columns(context) else said


def _has_columns(context: click.Context | None) -> bool:
    """Return whether the command that runs, or one of its group, has the option `--columns`."""
    if context is None or not (name := context.find_root().invoked_subcommand):
        return True
    called = main.get_command(context, name)
    commands = [called]
    if isinstance(called, click.Group):
        commands += [called.get_command(context, one) for one in called.list_commands(context)]
    return any(parameter.name == "columns" for command in commands if command for parameter in command.params)


@cache
def _option_names() -> frozenset[str]:
    """Return the names of all options: of the models of options, and of the commands themselves."""
    import bge_cocktail.options as homes

    models = [home for name in homes.__all__ if hasattr(home := getattr(homes, name), "model_fields")]
    names = {name for model in models for name in model.model_fields}
    context = click.Context(main)
    commands = [main.get_command(context, name) for name in COMMANDS]
    commands += [command for group in commands if isinstance(group, click.Group) for command in group.commands.values()]
    flags = {flag for command in commands if command for parameter in command.params for flag in parameter.opts}
    return frozenset(names | {flag.lstrip("-").replace("-", "_") for flag in flags})


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


def on_terminal() -> Reporter:
    """Yield a reporter that draws bars if standard error is a terminal, and is quiet otherwise."""
    if not sys.stderr.isatty():
        return _quiet
    shown: list[Any] = []

    @contextmanager
    def report(description: str, total: int) -> Iterator[Advance]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if len(shown) == _MOST_BARS:
            yield _nothing
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # work within work has a line below it, in one picture: bars of their own would flicker
        bars = shown[0] if shown else Progress(*columns, console=Console(stderr=True), transient=True)
        with nullcontext() if shown else bars:
            shown.append(bars)
            task = bars.add_task(description, total=total)

            def advance(steps: int, now: str = "", /) -> None:
                bars.update(task, advance=steps, description=f"{description}: {now}" if now else None)

            try:
                yield advance
            finally:
                shown.pop()
                bars.remove_task(task)

    return report


# a run, a step of it, what the step is at
_MOST_BARS = 3


def _nothing(_steps: int, _now: str = "", /) -> None:
    return None


def _quiet(_description: str, _total: int) -> AbstractContextManager[Advance]:
    return nullcontext(_nothing)
