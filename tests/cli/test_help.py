"""Help of a screenful, all of it on request, and completion."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from click.testing import Result

from bge_cocktail.cli import COMMANDS

Cli = Callable[..., Result]
LONG = ("prepare", "mine", "train", "merge", "evaluate", "update", "classify train")


@pytest.mark.parametrize("name", LONG)
def test_help_is_a_screenful_and_begins_with_what_is_required(cli: Cli, name: str) -> None:
    short, every = cli(*name.split(), "--help").output, cli(*name.split(), "--help-all").output
    assert len(short.splitlines()) <= 60 < len(every.splitlines())
    options = re.split(r"\n  (?=-)", "\n" + short.partition("Options:\n")[2])[1:]
    required = ["(required)" in " ".join(option.split()) for option in options]
    assert required == sorted(required, reverse=True)
    assert name == "merge" or any(required)  # a recipe can hold all that a merge needs
    assert any(line.endswith("--help-all") for line in short.splitlines())
    # each option of the short help is one of all
    assert all(re.findall(r"--[\w-]+", option)[0] in every for option in options)


def test_defaults_are_shown_once(cli: Cli) -> None:
    short = cli("train", "--help").output
    assert short.count("--epochs") == 1
    assert "Passes over the records (default: 3)." in short
    assert "--layer-decay" not in short
    assert "--layer-decay" in cli("train", "--help-all").output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_what_the_shell_sources(cli: Cli, shell: str) -> None:
    text = cli("completion", shell).output
    assert "_BGE_COCKTAIL_COMPLETE" in text
    words = {"COMP_WORDS": "bge-cocktail tr", "COMP_CWORD": "1" if shell != "fish" else "tr"}
    code = "from bge_cocktail.cli import main; main(prog_name='bge-cocktail')"
    environment = {**os.environ, **words, "_BGE_COCKTAIL_COMPLETE": f"{shell}_complete"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "train" in done.stdout
    assert all(name not in done.stdout for name in COMMANDS if not name.startswith("tr"))


def test_completion_of_no_shell(cli: Cli) -> None:
    assert "powershell" in cli("completion", "powershell", code=2).output
