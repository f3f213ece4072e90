"""Progress on a terminal: the whole, the step it is at, and what the step is at, below each other."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from bge_cocktail.cli import on_terminal
from bge_cocktail.core.progress import progress, report_progress_to


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_work_within_work_has_a_line_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with report_progress_to(on_terminal()), progress("run", 3) as whole:
        whole(0, "mine")
        whole(1, "evaluate")
        with progress("evaluating", 4) as step:
            step(3, "tuned on medquad")
            with progress("embedding", 9) as part:
                part(2)
                with progress("too deep to be shown", 1) as deeper:
                    deeper(1)
                print("a line", file=sys.stderr)  # above the bars, which stay whole
                time.sleep(0.3)  # it is drawn ten times a second
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    last = shown[shown.index("a line") :]
    assert re.search(r"run: evaluate +\S+ +1/3", last)
    assert re.search(r"evaluating: tuned on medquad +\S+ +3/4", last)
    assert re.search(r"embedding +\S+ +2/9", last)
    assert "too deep" not in shown


def test_nothing_is_drawn_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with report_progress_to(on_terminal()), progress("run", 3) as whole:
        whole(1, "mine")
    assert capsys.readouterr().err == ""
