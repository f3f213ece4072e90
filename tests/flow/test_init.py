"""How a run begins: presets, a run file filled in from a folder of data, data that are prepared first."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bge_cocktail.cli import main
from bge_cocktail.core.errors import DataError
from bge_cocktail.flow.proposal import propose_run
from bge_cocktail.options import (
    PRESETS,
    ClassifyOptions,
    EncodeOptions,
    EvaluateOptions,
    MineOptions,
    PrepareOptions,
    TrainOptions,
    preset_values,
    read_run_file,
)

Cli = Callable[..., Result]
MODELS = (PrepareOptions, EncodeOptions, MineOptions, TrainOptions, EvaluateOptions, ClassifyOptions)


@pytest.mark.parametrize("name", PRESETS)
def test_what_a_preset_sets_is_allowed_and_is_no_default(name: str, tmp_path: Path) -> None:
    for model in MODELS:
        values = preset_values(name, model)
        changed = model(**values)
        assert all(getattr(changed, option) != getattr(model(), option) for option in values), (name, model)
    path = tmp_path / "run.toml"
    path.write_text('[data]\ntrain = "somewhere"\n[train]\nepochs = 7\n')
    options = read_run_file(path, ["train.batch_size=9"], preset=name)
    assert (options.train.epochs, options.train.batch_size) == (7, 9)  # what is given goes before
    given = {**preset_values(name, TrainOptions), "epochs": 7, "batch_size": 9}
    assert options.train == TrainOptions(**given)
    assert options.prepare.clean == PrepareOptions(**preset_values(name, PrepareOptions)).clean
    assert options.encode == EncodeOptions(**preset_values(name, EncodeOptions))
    assert options.base == (PRESETS[name].base or "BAAI/bge-small-en-v1.5")


def test_commands_take_a_preset(cli: Cli, tiny: Path, beir: Path, labelled: Path, tmp_path: Path) -> None:
    def options_of(*arguments: object) -> dict[str, Any]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        cli(*arguments, "-o", folder)
        found: dict[str, Any] = json.loads((folder / "run.json").read_text())["options"]
        return found

    mined = options_of("mine", beir, "-m", tiny, "--preset", "quick", "--max-length", 16)
    assert (mined["mine"]["limit"], mined["mine"]["negatives"], mined["encode"]["max_length"]) == (1000, 3, 16)
    prepared = options_of("prepare", beir, "--preset", "code")
    assert prepared["prepare"]["clean"] == ["control"]
    trained = options_of("train", beir, "-m", tiny, "--preset", "quick", "--max-length", 16)
    assert (trained["epochs"], trained["negatives"]) == (1, 3)
    judged = options_of("evaluate", tiny, "--target", beir, "--preset", "quick", "--max-length", 16)
    assert judged["evaluate"]["limit"] == 200
    heads = options_of(
        "classify", "train", labelled, "-m", tiny, "--preset", "quick", "--max-length", 16, "--epochs", 1
    )
    assert heads["limit"] == 1000
    # what doesn't fit the model is said of the preset's option, too
    assert "max_length" in cli("mine", beir, "-m", tiny, "--preset", "quick", "-o", tmp_path / "x", code=2).stderr


def test_a_folder_of_data_is_looked_at(cli: Cli, beir: Path, labelled: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    both.mkdir()
    (both / "mine").symlink_to(beir)
    (both / "sentiment").symlink_to(labelled)
    said = cli("init", tmp_path / "run.toml", "--data", both, "--preset", "quick").stdout
    assert f"{both / 'mine'}: train, dev, target" in said
    assert f"{both / 'sentiment'}: must not get worse" in said
    options = read_run_file(tmp_path / "run.toml")
    assert options.data.train == options.data.dev == both / "mine"
    assert (options.data.target, options.data.general) == ([both / "mine"], [both / "sentiment"])
    assert options.train == TrainOptions(**preset_values("quick", TrainOptions))


def test_rows_and_labelled_texts_are_prepared_first(labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/faq.csv").write_text("question,answer\nq,a\n")
    values, seen = propose_run(tmp_path / "rows")
    assert values == {"prepare": {"sources": [str(tmp_path / "rows/faq.csv")]}, "data": {}}
    assert seen == [f"{tmp_path / 'rows/faq.csv'}: rows, to be prepared first"]
    cleaned, _ = propose_run(tmp_path / "rows", preset="code")
    assert cleaned["prepare"] == {"clean": ["control"], "sources": values["prepare"]["sources"]}
    values, _ = propose_run(labelled)
    assert values == {"prepare": {"sources": [str(labelled)]}, "data": {"target": [str(labelled)]}}
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nothing to tune on"):
        propose_run(tmp_path / "empty")
    with pytest.raises(DataError, match="no such file or folder"):
        propose_run(tmp_path / "nowhere")


def test_on_a_terminal_it_asks(beir: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answers = f"{beir}\n{labelled}\ncpu\nmy/model\n"
    runner = CliRunner()
    # the runner's own standard input says that it is none
    with monkeypatch.context() as patch:
        patch.setattr("bge_cocktail.cli.run._asks", lambda: True)
        result = runner.invoke(main, ["init"], input=answers)
    assert result.exit_code == 0, result.output
    values = tomllib.loads((tmp_path / "run.toml").read_text())
    assert values["base"] == "my/model"
    assert values["data"] == {
        "train": str(beir),
        "dev": str(beir),
        "target": [str(beir)],
        "general": [str(labelled)],
    }
    assert values["train"] == {"negatives": 3, "max_length": 256, "query_max_length": 64}
    with monkeypatch.context() as patch:
        patch.setattr("bge_cocktail.cli.run._asks", lambda: True)
        chinese = runner.invoke(main, ["init", "zh.toml"], input="\n\nchinese\n\n")
    assert chinese.exit_code == 0, chinese.output
    assert tomllib.loads((tmp_path / "zh.toml").read_text())["base"] == "BAAI/bge-small-zh-v1.5"
    assert runner.invoke(main, ["init", "other.toml"]).exit_code == 0  # no terminal: nothing is asked
    assert "Your data" in result.stderr


def test_a_run_prepares_first_and_not_twice(cli: Cli, tiny: Path, labelled: Path, tmp_path: Path) -> None:
    rows = [(f"what about thing {number}", f"thing {number} is number {number * 7}") for number in range(90)]
    with (tmp_path / "faq.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("question", "answer"), *rows])
    path = tmp_path / "run.toml"
    path.write_text(
        f"""
base = "{tiny}"
output = "{tmp_path / "run"}"
[prepare]
sources = ["{tmp_path / "faq.csv"}"]
columns = "query=question,pos=answer"
duplicates = "none"
[data]
general = ["{labelled}"]
[mine]
negatives = 1
[train]
epochs = 1
batch_size = 8
negatives = 1
[merge]
shares = []
auto = false
"""
    )
    plan = json.loads(cli("run", path, "--dry-run", "--format", "json").stdout)
    assert {step["state"] for step in plan.values()} == {"to do"}
    assert next(iter(plan)) == "prepare"
    assert not (tmp_path / "run").exists()
    first = cli("run", path)
    assert "prepare: train 62, dev 17, test 11" in first.stderr
    assert (tmp_path / "run/data/report.html").is_file()
    scores = json.loads((tmp_path / "run/evaluation/scores.json").read_text())["models"][0]["scores"]
    assert {score["task"]: score["count"] for score in scores if score["role"] == "target"} == {"data": 11}
    again = cli("run", path)
    assert "prepare: done already" in again.stderr
    assert "evaluate: done already" in again.stderr
    plan = json.loads(cli("run", path, "--dry-run", "--format", "json").stdout)
    assert [plan[name]["state"] for name in ("prepare", "mine", "train tuned")] == ["done"] * 3
    plan = json.loads(cli("run", path, "--set", "prepare.ratio=5:2:3", "--dry-run", "--format", "json").stdout)
    assert (plan["prepare"]["state"], plan["mine"]["state"]) == ("to do", "to do")
    assert "nothing.csv" in cli("run", path, "--set", "prepare.sources=['nothing.csv']", code=1).stderr


def test_a_dry_run_sees_what_is_not_there(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\nwhat is it,a boat\n")
    path = tmp_path / "run.toml"
    cli("init", path, "--data", tmp_path / "rows.csv", "--general", beir, "-m", tiny)
    assert "PydanticUndefined" not in path.read_text()
    dry = ("run", path, "--set", f"output={tmp_path / 'run'}", "--dry-run")
    cli(*dry)
    # one path is a list of one
    cli(*dry, "--set", f"data.general={beir}")
    said = cli(*dry, "--set", f"data.general={beir}s", code=1).stderr
    assert "no such folder" in said
    assert "Did you mean" in said
    assert "no such file" in cli(*dry, "--set", f"prepare.sources=['{tmp_path / 'row.csv'}']", code=1).stderr
