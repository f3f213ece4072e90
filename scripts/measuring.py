"""What benchmarks share: the CPU time and memory of a command, figures with targets, the tables of docs/."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import figures
from figures import DOCS

# started from a small process, because a child's peak memory begins with that of its parent
_RUN = """
import os, resource, subprocess, sys
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
sys.exit(status)
"""
Measured = tuple[float, float]
"""CPU seconds and peak memory in MB."""


class CommandFailedError(Exception):
    """A command can't do what it was asked for."""


def measure(command: list[str], output: Path | None, repeats: int) -> Measured:
    """CPU seconds (the least) and peak memory (the most) of a command; its output is removed before each run."""
    times, peaks = [], []
    for _ in range(repeats):
        if output is not None:
            shutil.rmtree(output, ignore_errors=True)
            if output.is_file():
                output.unlink()
        os.sync()  # what was written before is not written on this command's time
        done = subprocess.run([sys.executable, "-S", "-c", _RUN, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CommandFailedError(f"{' '.join(command)[:200]} failed:\n{done.stderr[-2000:]}")
        seconds, peak = done.stdout.split()[-2:]
        times.append(float(seconds))
        peaks.append(float(peak))
    return min(times), max(peaks)


class Figures:
    """What a benchmark measured.

    Args:
        name: Of the benchmark; its table in docs/ stands between ``<!-- bench NAME -->`` and ``<!-- /bench NAME -->``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.all: list[dict[str, Any]] = []

    def note(
        self,
        name: str,
        ours: float,
        peer: float | None,
        target: float,
        what: str,
        *,
        least: bool = False,
        high: bool = False,
    ) -> None:
        """Keep and print a figure.

        Args:
            name: Of the figure.
            ours: Our value.
            peer: The peer's, if there is one.
            target: What is to be reached.
            what: Said beside it.
            least: The ratio peer / ours shall reach the target; else ours may not pass it.
            high: Ours shall reach the target.
        """
        ratio = None if peer is None else round(peer / ours, 2)
        reached = ours >= target if high else ours <= target
        met = (None if ratio is None else ratio >= target) if least else reached
        digits = 6 if high else 2
        figure = {"name": name, "ours": round(ours, digits), "peer": None if peer is None else round(peer, 2)}
        self.all.append({**figure, "ratio": ratio, "target": target, "met": met, "what": what})
        print(json.dumps(self.all[-1]), flush=True)

    def finish(self, *, write: bool) -> None:
        """Print the last line, which sums up, and put the figures into docs/ if asked."""
        if write:
            write_table(self.name, [figure for figure in self.all if figure["met"] is not None])
        missed = [figure["name"] for figure in self.all if figure["met"] is False]
        against = [figure for figure in self.all if figure["ratio"] is not None]
        first = (against or self.all)[0]
        last = {key: first[key] for key in ("ours", "peer", "ratio", "target")}
        print(json.dumps({"name": self.name, **last, "met": not missed, "missed": missed}))


_COLUMNS = ("ours", "peer", "ratio", "target", "met")
Cells = dict[str, dict[str, str]]
"""What a table holds, by row and column."""


def write_table(name: str, figures: list[dict[str, Any]]) -> None:
    """Put figures into the table of a benchmark; rows of figures that weren't measured this time stay."""
    _, _, old, _ = _block(name)
    corner, _ = _read(old)
    lines = [_row([corner or "whole command, CPU seconds unless said", *_COLUMNS]), "|---" * (len(_COLUMNS) + 1) + "|"]
    for figure in figures:
        shown = ["-" if figure[key] is None else f"{figure[key]:g}" for key in ("ours", "peer", "ratio", "target")]
        lines.append(_row([figure["name"], *shown, "yes" if figure["met"] else "no"]))
    into_docs(name, "\n".join(lines))


def into_docs(name: str, table: str) -> None:
    """Put a Markdown table between the marks of a benchmark; rows and columns that it doesn't have stay as they are."""
    page, before, old, after = _block(name)
    page.write_text(f"{before}\n{joined(old, table)}\n{after}", encoding="utf-8")
    figures.note(name)
    page.write_text(figures.with_marks(page.name), encoding="utf-8")


def joined(old: str, new: str) -> str:
    """Two Markdown tables as one, cell by cell, the new one's where both have it; `-` where neither has.

    Args:
        old: May be empty. Its rows and columns come first, in their order.
        new: The columns of either have names of their own.
    """
    corner, cells = _read(new)
    earlier = _read(old)[1]
    rows = list(dict.fromkeys([*earlier, *cells]))
    columns = list(dict.fromkeys(column for table in (earlier, cells) for row in table.values() for column in row))
    lines = [_row([corner, *columns]), "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        known = earlier.get(row, {}) | cells.get(row, {})
        lines.append(_row([row, *(known.get(column, "-") for column in columns)]))
    return "\n".join(lines)


def _read(table: str) -> tuple[str, Cells]:
    """What stands in the corner of a table, and its cells."""
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.strip().splitlines()]
    if not lines:
        return "", {}
    head, _, *rows = lines
    return head[0], {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def _row(cells: list[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def _block(name: str) -> tuple[Path, str, str, str]:
    """The page of a table, what stands there up to and with the opening mark, between the marks, and after."""
    start, end = f"<!-- bench {name} -->", f"<!-- /bench {name} -->"
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if start in text and end in text:
            before, _, rest = text.partition(start)
            old, _, after = rest.partition(end)
            return page, before + start, old, end + after
    raise SystemExit(f"no page of docs/ has the marks {start} and {end}")
