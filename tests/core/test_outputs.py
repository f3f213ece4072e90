"""What is written replaces nothing of others, and whoever is in the way is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from conftest import ROOT, leftovers, write_lines

from bge_cocktail.core.errors import CocktailError, DataError, UsageError, near_path
from bge_cocktail.core.outputs import new_folder, refuse_to_replace, write_json
from bge_cocktail.core.runs import RUN_FILE
from bge_cocktail.data.beir import read_beir
from bge_cocktail.data.record_files import read_records
from bge_cocktail.flow.steps import begin_run, refuse_other_folder
from bge_cocktail.options import EncodeOptions, checked
from bge_cocktail.report.collect import Step
from bge_cocktail.report.sections.training import curves_of
from bge_cocktail.training.engine.run import work_folder

Cli = Callable[..., Result]


def test_what_came_while_it_was_made_stays(tmp_path: Path) -> None:
    def make() -> None:
        with new_folder(tmp_path / "out") as new:
            (new / "result").write_text("ours")
            (tmp_path / "out").mkdir()
            (tmp_path / "out/notes.txt").write_text("theirs")

    with pytest.raises(UsageError, match="exists already"):
        make()
    assert (tmp_path / "out/notes.txt").read_text() == "theirs"
    assert not leftovers(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_replace(tmp_path / "new/out", overwrite=False)
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)
    with pytest.raises(CocktailError, match=f"{tmp_path} can't be written to"):
        refuse_to_replace(tmp_path / "new/out", overwrite=False)


def test_json_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    code = (
        "from bge_cocktail.core.outputs import write_json; from pathlib import Path\n"
        f"write_json(Path({str(tmp_path / 'a')!r}), '\\u4e2d')"
    )
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code], check=True, env=plain, cwd=ROOT)
    assert json.loads((tmp_path / "a").read_text(encoding="utf-8")) == "\u4e2d"


def test_a_run_is_written_to_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for free in (tmp_path / "new", tmp_path / "empty"):
        refuse_other_folder(free, [data])
        free.mkdir()
        (free / "run.toml").touch()
    begin_run(tmp_path / "new")
    (tmp_path / "new/mined").mkdir()
    refuse_other_folder(tmp_path / "new", [data])
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "report.html").write_text("theirs")
    for path, said in (
        (theirs, "holds other things"),
        (theirs / "report.html", "is a file"),
        (data / "out", "lies in"),
    ):
        with pytest.raises(UsageError, match=said):
            refuse_other_folder(path, [data])
    write_json(theirs / RUN_FILE, {"command": "train", "key": "k"})
    with pytest.raises(UsageError, match="holds other things than a run"):
        refuse_other_folder(theirs, [])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="the folder that the command is started in"):
        refuse_other_folder(Path(), [])


GO_ON = {"resume": True, "overwrite": False}
ANEW = {"resume": False, "overwrite": False}


def test_two_trainings_in_one_folder(tmp_path: Path) -> None:
    working = tmp_path / "out.unfinished"
    code = (
        "import sys; from pathlib import Path; from bge_cocktail.training.engine.run import work_folder\n"
        f"with work_folder(Path({str(working)!r}), 'training', 'k', resume=False, overwrite=False):\n"
        "    print('begun', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "begun\n"
        for resume in (False, True):
            with (
                pytest.raises(UsageError, match="another training is going on in"),
                work_folder(working, "training", "k", resume=resume, overwrite=True),
            ):
                pass
        assert (working / RUN_FILE).is_file()
    finally:
        other.kill()
        other.communicate()
    for _ in range(2):  # the lock went with its process, and goes with this one's work
        with work_folder(working, "training", "k", **GO_ON):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["out.unfinished"]


def test_of_many_that_begin_at_once_one_does(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from bge_cocktail.core.errors import UsageError\n"
        "from bge_cocktail.training.engine.run import work_folder\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try:\n"
        f"    with work_folder(Path({str(tmp_path / 'w')!r}), 'training', 'k', resume=False, overwrite=True):\n"
        "        print('begun', flush=True); time.sleep(1)\n"
        "except UsageError as error:\n"
        "    print(error, flush=True)"
    )
    going = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(4)
    ]
    for one in going:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in going:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    said = [one.communicate()[0] for one in going]
    assert sorted("another training is going on" in one for one in said) == [False, True, True, True]
    assert sum(one == "begun\n" for one in said) == 1


def test_what_came_far_is_removed_only_if_asked(tmp_path: Path) -> None:
    working = tmp_path / "out.unfinished"

    def begin(key: str, **how: bool) -> None:
        with work_folder(working, "training", key, **how):
            pass

    begin("k", **ANEW)
    begin("k", **ANEW)  # nothing is lost
    kept = working / "checkpoints/checkpoint-5/model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with pytest.raises(UsageError, match="an unfinished training: `resume` goes on with it, `overwrite` begins again"):
        begin("other", **ANEW)
    begin("k", **GO_ON)
    assert kept.is_file()
    (working / "bad_batch.jsonl").touch()  # the loss was no number: there is nothing to go on from
    begin("other", **ANEW)
    assert not kept.exists()
    kept.parent.mkdir(parents=True)
    kept.touch()
    begin("third", resume=False, overwrite=True)
    assert not kept.exists()


def test_sigterm_leaves_nothing_half_written(tiny: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "data/train.jsonl", [{"text": f"the dog {n}", "label": str(n % 2)} for n in range(40_000)])
    write_lines(tmp_path / "data/test.jsonl", [{"text": f"a cat {n}", "label": str(n % 2)} for n in range(40)])
    command = ["evaluate", tiny, "--target", tmp_path / "data", "-o", tmp_path / "out", "--device", "cpu"]
    going = subprocess.Popen(
        [sys.executable, "-m", "bge_cocktail", *map(str, command)], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    deadline = time.monotonic() + 60
    while not leftovers(tmp_path) and time.monotonic() < deadline:  # the folder that it writes to
        time.sleep(0.05)
    going.send_signal(signal.SIGTERM)
    _, said = going.communicate(timeout=60)
    assert going.returncode == 130, said
    assert "interrupted; no output was left half-written" in said
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)


def test_judgements_that_contradict_each_other(beir: Path, tmp_path: Path) -> None:
    for name in ("corpus.jsonl", "queries.jsonl"):
        (tmp_path / name).write_text((beir / name).read_text())
    lines = (beir / "qrels/test.tsv").read_text().splitlines()
    query, document, _ = lines[1].split("\t")
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/test.tsv").write_text("\n".join([*lines, lines[1]]) + "\n")  # said twice, but the same
    assert read_beir(tmp_path).qrels == read_beir(beir).qrels
    (tmp_path / "qrels/test.tsv").write_text("\n".join([*lines, f"{query}\t{document}\t0"]) + "\n")
    with pytest.raises(DataError, match=rf"test.tsv:{len(lines) + 1}: '{document}' is judged 0 for '{query}', and 1"):
        read_beir(tmp_path)


def test_queries_without_a_positive_are_told(beir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("corpus.jsonl", "queries.jsonl"):
        (tmp_path / name).write_text((beir / name).read_text())
    head, first, *rest = (beir / "qrels/train.tsv").read_text().splitlines()
    query = first.split("\t")[0]
    kept = [line for line in rest if line.split("\t")[0] != query]
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/train.tsv").write_text("\n".join([head, first[: first.rindex("\t")] + "\t0", *kept]) + "\n")
    assert len(read_records(tmp_path)) == len({line.split("\t")[0] for line in kept})
    assert "1 are left out: query without a relevant document" in caplog.text
    with pytest.raises(UsageError, match="is a BEIR folder, whose columns have names of their own"):
        read_records(tmp_path, columns="query=q,pos=p")


def test_misspelt_prompts_and_paths(tiny: Path, tmp_path: Path, cli: Cli) -> None:
    with pytest.raises(UsageError, match="query_prompt: no prompt of that name. Did you mean 'bge-en'"):
        checked(EncodeOptions, {"query_prompt": "bge-enn"})
    for prompt in ("query: ", "document:", "Document", "query"):
        assert checked(EncodeOptions, {"query_prompt": prompt}).query_prompt == prompt
    (tmp_path / "tuned").mkdir()
    assert near_path(str(tmp_path / "tund")) == f" Did you mean '{tmp_path / 'tuned'}'?"
    assert near_path(str(tmp_path / "nothing like it")) == near_path("/no/such/parent") == ""
    said = cli("compare", tmp_path / "tund", code=1).output
    assert f"{tmp_path / 'tund'}: no such folder. Did you mean" in said


def test_the_curves_of_a_training_that_was_cut_off(tmp_path: Path) -> None:
    (tmp_path / "curves.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert curves_of(Step(tmp_path, "out", {})) == [{"step": 1, "loss": 0.5}]


def test_what_a_run_would_stumble_over_is_said_first(tiny: Path, beir: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "run.toml").write_text(
        f'base = "{tiny}"\noutput = "{tmp_path / "out"}"\n[data]\ntrain = "{beir}"\ntarget = ["{beir}"]\n'
        "[train]\nbatch_size = 4\nnegatives = 1\n"
    )
    for change, said in (
        ('evaluate.metrics=["nope"]', "no measure 'nope'"),
        ("encode.device=gpu", "gpu"),
        ("encode.max_length=100000", "positions"),
        (f"output={tiny}", "is or lies in an input"),
    ):
        assert said in cli("run", tmp_path / "run.toml", "--set", change, "--dry-run", code=2).output
    cli("run", tmp_path / "run.toml", "--dry-run")
