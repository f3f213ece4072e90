"""What nobody foresaw ends in one line; calls at random never end in anything else."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import write_lines

from bge_cocktail.cli import UNFORESEEN, main
from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.core.outputs import new_file, new_folder, refuse_to_replace, sweep
from bge_cocktail.data.record_files import RecordStore
from bge_cocktail.merging.weights import bagged_relative_weights, relative_weights
from bge_cocktail.report.text import text_table

Cli = Callable[..., Result]


def test_what_was_not_foreseen_is_one_line(monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault\nof ours")

    monkeypatch.setattr("bge_cocktail.merging.inspect.inspect", broken)
    result = CliRunner().invoke(main, ["inspect", str(tiny), str(tiny)])
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: {UNFORESEEN} (ZeroDivisionError: a fault); for all of it: bge-cocktail --debug inspect\n"
    )
    result = CliRunner().invoke(main, ["--debug", "inspect", str(tiny), str(tiny)])
    assert isinstance(result.exception, ZeroDivisionError)


def test_temporary_folders_of_the_dead_are_swept_and_of_the_living_not(tmp_path: Path) -> None:
    output = tmp_path / "out"
    code = (
        "import sys, time; from pathlib import Path; from bge_cocktail.core.outputs import new_folder\n"
        f"with new_folder(Path({str(output)!r})) as new:\n"
        "    (new / 'weights').write_text('x'); print(new.name, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    left = tmp_path / process.stdout.readline().strip()
    sweep(output)
    assert left.is_dir(), "its process lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert left.is_dir()
    with new_folder(output) as new:
        (new / "done").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    file = tmp_path / "file.json"
    (tmp_path / ".file.json.0123abcd.tmp").touch()
    (tmp_path / ".file.json.0123abcd.new").touch()
    os.utime(tmp_path / ".file.json.0123abcd.new", (0, 0))
    (tmp_path / ".other.json.0123abcd.tmp").touch()
    with new_file(file) as working:
        working.write_text("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.json.0123abcd.tmp", "file.json", "out"]


def test_no_temporary_folder_outlives_the_next_run(tiny: Path, nudged: list[Path], tmp_path: Path) -> None:
    """Killed at moments all over a merge, and begun again: beside the output nothing is left."""
    arguments = ["-m", "bge_cocktail", "merge", str(tiny), str(nudged[0]), "-o", str(tmp_path / "out")]
    started = time.monotonic()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - started
    draw = random.Random(3)
    for _ in range(6):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.3, 1.0) * whole)
        process.kill()
        process.wait()
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_outputs_that_cannot_be(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none/at/all")
    with pytest.raises(UsageError, match="is a link that leads back to itself|is a link to nothing"):
        refuse_to_replace(tmp_path / "loop", False)
    with pytest.raises(UsageError, match="is a link to nothing"):
        refuse_to_replace(tmp_path / "nowhere", False)
    with pytest.raises(UsageError, match="is no UTF-8"):
        refuse_to_replace(tmp_path / "a\udcff", False)
    assert "the argument 'b\\udcff' is no UTF-8" in cli("merge", tiny, "-o", "b\udcff", code=2).stderr
    os.mkfifo(tmp_path / "pipe.jsonl")
    result = cli("prepare", tmp_path / "pipe.jsonl", "-o", tmp_path / "out", code=1)
    assert "is a pipe, which can be read but once" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "d", "-m", "m", "--epochs", "1e308"], "epochs"),
        (["train", "d", "-m", "m", "--dense", "100000000"], "dense"),
        (["train", "d", "-m", "m", "--workers", "100000000000000000000"], "workers"),
        (
            ["train", "d", "-m", "m", "--loss-weights", "0"],
            "--loss-weights: loss_weights: numbers above 0 are expected",
        ),
        (["train", "d", "-m", "m", "--loss-weights", "-1"], "numbers above 0 are expected"),
        (["train", "d", "-m", "m", "--resume", "--overwrite"], "give one of them"),
        (["classify", "train", "d", "-m", "m", "--resume", "--overwrite"], "give one of them"),
        (["classify", "train", "d", "-m", "m", "--labels", "0=a,1=a"], "two labels are called 'a'"),
        (["classify", "train", "d", "-m", "m", "--labels", "0=a,0=b"], "the label '0' is named twice"),
        (["mine", "d", "-m", "m", "--min-similarity", "0.9", "--max-similarity", "0.1"], "so that nothing is left"),
        (["compare", "a", "b", "--confidence", "nan"], "nan is no number"),
        (["evaluate", "=m", "--target", "t"], "printable and not empty"),
        (["evaluate", "a\x1bb=m", "--target", "t"], "printable and not empty"),
    ],
)
def test_what_can_not_be_meant_is_refused(cli: Cli, tmp_path: Path, arguments: list[str], message: str) -> None:
    output = [] if arguments[0] == "compare" else ["-o", tmp_path / "out"]
    assert message in cli(*arguments, *output, code=2).stderr.replace("\n", " ")


def test_a_report_over_the_whole_disk_ends(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bge_cocktail.report.collect.MOST_FOLDERS", 20)
    for number in range(30):
        (tmp_path / f"disk/{number}").mkdir(parents=True)
    result = cli("report", tmp_path / "disk", "-o", tmp_path / "r.html", code=2)
    assert "holds more than 20 folders; name the runs in it" in result.stderr


def test_long_lines_of_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bge_cocktail.data.record_files.LINE_LIMIT", 1 << 20)
    path = write_lines(tmp_path / "d.jsonl", [{"query": "a", "pos": ["b"]}, {"query": "c", "pos": ["x" * (1 << 20)]}])
    with pytest.raises(DataError, match="d.jsonl:2: the line is longer than 1 MiB"):
        RecordStore(path)


def test_ids_that_no_run_file_holds_are_found_before_the_work(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(beir, tmp_path / "task")
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines] + [{"_id": "a b", "text": "x"}]
    write_lines(folder / "corpus.jsonl", rows)
    result = cli("evaluate", tiny, "--target", folder, "--save-runs", "-o", tmp_path / "out", code=1)
    assert "the id 'a b' can't stand in a TREC run" in result.stderr
    result = cli("evaluate", tiny, "--target", folder, "--device", "meta", "-o", tmp_path / "out", code=2)
    assert "device 'meta' can't be used here" in result.stderr


def test_a_mistyped_folder_names_the_near_one(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "tuned").mkdir()
    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        result = cli("merge", "tunde", tiny, "-o", tmp_path / "out", code=1)
    assert "no model folder 'tunde' is here, nor in the local hub cache. Did you mean 'tuned'?" in result.stderr
    assert time.monotonic() - started < 2, "the hub is not asked"


def test_terminals_are_not_moved_by_data() -> None:
    table = text_table(("a\x1b[31m",), [["b\u202ec"], ["d\u200de"]])
    assert "\x1b" not in table
    assert "\\x1b[31m" in table
    assert "b\\u202ec" in table
    assert "d\u200de" in table


def test_relative_weights_shrink_where_differences_are_noise() -> None:
    """At chance level, 0.0001 of difference is nothing; a clear lead of one model is all of the weight."""
    generator = np.random.default_rng(0)
    chance = np.full(50, 2.0)
    common = 0.3 * generator.standard_normal(50)
    common += 2.0 - common.mean()
    noise = np.stack([common - step for step in (0.0003, 0.0002, 0.0001)])
    assert relative_weights(noise.mean(axis=1), 2.0)[0] > 0.9  # what the means alone would say
    assert np.abs(np.array(bagged_relative_weights(noise, chance)) - 1 / 3).max() < 0.02
    clear = np.stack([common - 1.5, common - 0.1, common])
    assert bagged_relative_weights(clear, chance)[0] > 0.99
    single = np.array([[1.0], [1.2]])
    assert bagged_relative_weights(single, np.array([2.0])) == pytest.approx(relative_weights([1.0, 1.2], 2.0))


ODD = [
    "",
    "nan",
    "-1",
    "1e308",
    "10" * 12,
    "a=b",
    "\x1b[0m",
    "../..",
    "💥",
    "none",
    "0",
    "auto",
    "x" * 300,
    "[1,2]",
    "{}",
]


def _flags(command: click.Command) -> list[tuple[str, bool]]:
    options = [option for option in command.params if isinstance(option, click.Option)]
    untouched = ("--help", "--format", "--output", "--overwrite", "--resume", "--mteb")
    return [(option.opts[-1], option.is_flag) for option in options if option.opts[-1] not in untouched]


def _command(words: list[str]) -> click.Command:
    command: click.Command | None = main
    for word in words:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(main), word)
    assert command is not None
    return command


def test_calls_at_random(
    cli: Cli,
    tiny: Path,
    nudged: list[Path],
    beir: Path,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A few hundred calls with one or two parts of them changed: exit codes as documented, and nothing unforeseen."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # odd names may be taken for folders to write
    # models of its own: --card puts scores into a model's folder, and other tests have these models without a card
    tiny, *nudged = (shutil.copytree(one, tmp_path / f"model-{number}") for number, one in enumerate((tiny, *nudged)))
    draw = random.Random(20)
    (tmp_path / "odd.jsonl").write_text('[1]\n{"query": 3}\n{"a": {"b": [[]]}}\nnull\n"x"\n')
    (tmp_path / "deep.jsonl").write_text("[" * 100_000 + "\n")
    (tmp_path / "bytes.jsonl").write_bytes(bytes(range(256)))
    whole = tmp_path / "whole"
    cli("evaluate", f"one={tiny}", f"two={nudged[0]}", "--target", beir, "-o", whole)
    damaged = shutil.copytree(tiny, tmp_path / "damaged")
    for name in ("config.json", "modules.json", "tokenizer.json"):
        (shutil.copytree(tiny, tmp_path / f"damaged-{name}") / name).write_text(draw.choice(["[]", "{}", "3", "[[]]"]))
    (damaged / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:1000])
    names = (
        "odd.jsonl",
        "deep.jsonl",
        "bytes.jsonl",
        "none",
        "damaged",
        "damaged-config.json",
        "damaged-tokenizer.json",
    )
    places = [*map(str, (tiny, beir, labelled, whole)), *(str(tmp_path / name) for name in names)]
    places += [str(tmp_path / "damaged-modules.json"), str(tmp_path / "damaged-tokenizer.json"), "a/b"]
    quick = ["--epochs", "0.1", "--batch-size", "8"]
    base = [
        (["prepare"], [str(beir)]),
        (["mine"], [str(beir), "-m", str(tiny), "--negatives", "2"]),
        (["train"], [str(beir), "-m", str(tiny), *quick, "--negatives", "0"]),
        (["inspect"], [str(tiny), str(nudged[0])]),
        (["merge"], [str(tiny), str(nudged[0])]),
        (["merge"], [str(tiny), str(nudged[0]), "--weights", "cocktail", "--examples", str(beir)]),
        (["evaluate"], [str(tiny), "--target", str(beir), "--general", str(labelled)]),
        (["compare"], [str(whole)]),
        (["report"], [str(whole)]),
        (["indexes"], [str(tiny), str(beir)]),
        (["leaderboard"], [str(whole)]),
        (["classify", "train"], [str(labelled), "-m", str(tiny), *quick]),
        (["list"], ["merge-methods"]),
    ]
    runner = CliRunner(env={"HF_HUB_OFFLINE": "1"})
    for number in range(300):
        words, given = base[number % len(base)]
        arguments, flags = list(given), _flags(_command(words))
        for _ in range(draw.choice([1, 1, 2])):
            flag, is_flag = draw.choice(flags) if flags else ("--debug", True)
            if draw.random() < 0.4:
                arguments[draw.randrange(len(arguments))] = draw.choice([*ODD, *places])
            else:
                arguments += [flag] if is_flag else [flag, draw.choice([*ODD, *places, "1", "0.5", "2,1"])]
        output = [] if words[0] in ("compare", "list", "leaderboard") else ["-o", str(tmp_path / f"out{number}.html")]
        result = runner.invoke(main, [*words, *arguments, *output])
        told = f"{words} {arguments}\n{result.output[-1500:]}"
        assert result.exit_code in (0, 1, 2, 3, 130), told
        assert UNFORESEEN not in result.output, told
        assert result.exception is None or isinstance(result.exception, SystemExit), told


def _damage(value: Any, draw: random.Random) -> Any:
    """The same JSON with one part of it something else."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        name = draw.choice(sorted(value))
        return {**value, name: _damage(value[name], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        return [*value[:place], _damage(value[place], draw), *value[place + 1 :]]
    return draw.choice([None, 3, "x", [], {}, True, [[1]], {"a": 1}])


def test_damaged_models(cli: Cli, tiny: Path, nudged: list[Path], beir: Path, tmp_path: Path) -> None:
    """A model's JSON files with a part changed: refused in one line, or of no consequence."""
    draw = random.Random(11)
    files = sorted(tiny.rglob("*.json"))
    for number in range(25):
        model = shutil.copytree(tiny, tmp_path / f"model{number}")
        file = model / draw.choice(files).relative_to(tiny)
        content = _damage(json.loads(file.read_text()), draw)
        file.write_text(json.dumps(content))
        output = tmp_path / f"out{number}"
        for arguments in (
            ["inspect", model, tiny],
            ["merge", model, nudged[0], "-o", output / "merged"],
            ["evaluate", model, "--target", beir, "-o", output / "judged"],
        ):
            result = cli(*arguments, code=None)
            told = (arguments[0], file.name, str(content)[:300], result.output)
            assert result.exit_code in (0, 1, 2), told
            assert UNFORESEEN not in result.output, told


def test_damaged_outputs_of_ours(cli: Cli, tiny: Path, nudged: list[Path], beir: Path, tmp_path: Path) -> None:
    """Our own files with a part changed: a report, a comparison, in one line or by leaving it out, never a fault."""
    whole = tmp_path / "whole"
    cli("evaluate", f"one={tiny}", f"two={nudged[0]}", "--target", beir, "-o", whole)
    draw = random.Random(7)
    for number in range(40):
        folder = shutil.copytree(whole, tmp_path / f"damaged{number}")
        file = folder / draw.choice(["run.json", "scores.json", "per_query.jsonl", "answers.jsonl", "texts.jsonl"])
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        lines[0] = json.dumps(_damage(json.loads(lines[0]), draw))
        file.write_text("\n".join(lines) + "\n")
        for arguments in (["compare", folder], ["report", folder, "-o", folder / "r.html"]):
            result = cli(*arguments, code=None)
            assert result.exit_code in (0, 1, 2), (file.name, lines[0][:300], result.output)
            assert UNFORESEEN not in result.output, (arguments[0], file.name, lines[0][:600], result.output)
