"""A whole run from a file: end to end, not done twice, picked up where it stopped."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from conftest import leftovers

from bge_cocktail.core.errors import CocktailError, DataError, UsageError
from bge_cocktail.flow.flow import run
from bge_cocktail.flow.steps import begin_run
from bge_cocktail.options import read_run_file

Cli = Callable[..., Result]


@pytest.fixture
def run_file(tiny: Path, beir: Path, labelled: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(
        f"""
base = "{tiny}"
output = "{tmp_path / "run"}"

[data]
train = "{beir}"
dev = "{beir}"
target = ["{beir}"]
general = ["{labelled}"]

[mine]
negatives = 2

[train]
epochs = 8
patience = 0
batch_size = 8
learning_rate = 1e-3
negatives = 1
precision = "fp32"

[merge]
slices = 2
shares = [0.0, 0.5, 1.0]
"""
    )
    return path


def test_end_to_end_and_not_twice(cli: Cli, run_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    plan = cli("run", run_file, "--dry-run")
    assert plan.stdout.count("to do") == 7
    assert not folder.exists()

    first = cli("run", run_file, "--format", "json")
    found = json.loads(first.stdout)
    assert [model["model"] for model in found["models"]] == [
        "base",
        "tuned",
        "cocktail of 2 (share 0.5)",
        "cocktail of 4 (share 0.5)",
    ]
    base, tuned, *_ = found["models"]
    assert tuned["target"] > base["target"] + 0.05
    assert [point["share"] for point in found["tradeoff"]] == [0.0, 0.5, 1.0]
    # the ends of the trade-off are the models themselves, its middle is the cocktail
    for point, model in zip(found["tradeoff"], (base, found["models"][2], tuned), strict=True):
        assert point["target"] == pytest.approx(model["target"])
        assert point["general"] == pytest.approx(model["general"])
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    assert leftovers(tmp_path) == []

    def times() -> dict[Path, int]:
        """When files were written, but for what says of the last call."""
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path: path.stat().st_mtime_ns for path in files if path.name not in ("run.json", "report.html")}

    written = times()
    second = cli("run", run_file, "--format", "json")
    assert json.loads(second.stdout) == found
    assert times() == written
    assert "<h2>Target and general</h2>" in (folder / "report.html").read_text()
    done = json.loads((folder / "run.json").read_text())["steps_found_done"]
    assert len(done) == 8
    assert cli("run", run_file, "--dry-run").stdout.count("done") == 4

    # another share has one point more to measure
    other = cli("run", run_file, "--set", "merge.share=0.25")
    assert "trade-off: 1 of 4 shares to measure" in other.stderr
    assert json.loads((folder / "tradeoff/tradeoff.json").read_text())["points"][2] == [
        found["tradeoff"][1][name] for name in ("share", "target", "general")
    ]

    # an option of a later step leaves the earlier ones alone
    cli("run", run_file, "--set", "evaluate.metrics=['nDCG@10','P@1']")
    done = json.loads((folder / "run.json").read_text())["steps_found_done"]
    assert "train tuned" in done
    assert "evaluate" not in done
    table = cli("run", run_file).stdout
    assert "against base: target +" in table
    assert "share of tuned" in table


def test_a_merge_is_chosen_where_all_tasks_have_a_dev(cli: Cli, run_file: Path, labelled: Path, tmp_path: Path) -> None:
    general = shutil.copytree(labelled, tmp_path / "kinds2")
    shutil.copyfile(general / "test.jsonl", general / "dev.jsonl")
    settings = ("--set", f"data.general=['{general}']", "--set", "merge.epsilon=0.5", "--set", "merge.slices=0")
    quick = ("--set", "train.epochs=2", "--set", "merge.shares=[]")
    found = json.loads(cli("run", run_file, *settings, *quick, "--format", "json").stdout)
    assert [model["model"] for model in found["models"]][-1] == "chosen (auto)"
    run = json.loads((tmp_path / "run/chosen/run.json").read_text())
    assert run["options"]["weights"] == "auto"
    assert run["note"].startswith(("use ", "stay with "))
    cli("run", run_file, *settings, *quick)
    assert "merge chosen" in json.loads((tmp_path / "run/run.json").read_text())["steps_found_done"]
    off = ("--set", "merge.auto=false")
    found = json.loads(cli("run", run_file, *settings, *quick, *off, "--format", "json").stdout)
    assert len(found["models"]) == 3


def test_a_run_goes_on_where_it_was_cut(run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bge_cocktail.training.encoder.loss import BatchLoss

    real, count = BatchLoss.forward, 0

    def forward(self: BatchLoss, *arguments: object) -> object:
        nonlocal count
        count += 1
        if count == 18:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(BatchLoss, "forward", forward)
    settings = ["merge.slices=0", "merge.shares=[]"]
    with pytest.raises(KeyboardInterrupt):
        run(run_file, settings)
    folder = tmp_path / "run"
    assert (folder / "mined").is_dir()
    assert not (folder / "tuned").exists()
    assert (folder / "tuned.unfinished/checkpoints").is_dir()
    before = count
    outcome = run(run_file, settings)
    # 8 epochs of 7 steps; the last checkpoint before the cut was at step 16
    assert count - before == 56 - 16
    assert not (folder / "tuned.unfinished").exists()
    assert outcome.picture is None
    monkeypatch.undo()
    whole = run(run_file, [*settings, f"output={tmp_path / 'whole'}"])
    assert (folder / "tuned/model.safetensors").read_bytes() == (
        tmp_path / "whole/tuned/model.safetensors"
    ).read_bytes()
    assert whole.results == [
        type(one)(one.model, two.path, one.scores) for one, two in zip(outcome.results, whole.results, strict=True)
    ]


def test_what_the_scores_depend_on_is_in_the_keys(run_file: Path, beir: Path, labelled: Path, tmp_path: Path) -> None:
    base = ["merge.slices=0", "train.epochs=1"]
    first = run(run_file, base)
    folder = tmp_path / "run"

    def done(*settings: str) -> list[str]:
        run(run_file, [*base, *settings])
        found: list[str] = json.loads((folder / "run.json").read_text())["steps_found_done"]
        return found

    assert len(done()) == 5
    # the same tasks in other roles are other averages
    swapped = run(run_file, [*base, f'data.target=["{beir}", "{labelled}"]', "data.general=[]"])
    assert swapped.results[0].mean("general") is None
    assert swapped.results[0].mean("target") != first.results[0].mean("target")
    assert swapped.tradeoff == []
    assert len(done()) == 4  # evaluated again with the first roles; the trade-off was not touched
    assert "trade-off" not in done("evaluate.split=dev", f'data.general=["{beir_like(beir, tmp_path)}"]')
    assert "merge cocktail" not in done("merge.share=0.4")


def beir_like(beir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(beir, tmp_path / "others", dirs_exist_ok=True))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluate.split=tset", "no such split. Did you mean 'test'"),
        ('merge.others=["none/here"]', "none/here"),
        ("merge.slices=9", "batch_size=8 is larger than the data: 5 pairs in one of 9 slices"),
        ("train.max_length=999", "more than the model's 64 positions"),
        ("train.precision=fp16", "fp16 needs a CUDA device"),
        ("data.dev=nowhere", "nowhere: no such file"),
        ("data.train=nowhere", "nowhere: no such file"),
    ],
)
def test_what_would_stop_a_later_step_stops_the_first(
    run_file: Path, tmp_path: Path, setting: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CocktailError, match=message):
        run(run_file, [setting])
    assert not (tmp_path / "run").exists()


def test_a_run_inside_its_base_is_refused_at_once(run_file: Path, tiny: Path, tmp_path: Path) -> None:
    inside = Path(shutil.copytree(tiny, tmp_path / "base"))
    with pytest.raises(UsageError, match="lies in an input"):
        run(run_file, [f"base={inside}", f"output={inside / 'run'}"])
    assert not (inside / "run").exists()


def test_prompts_of_encode_are_trained_and_judged_with(run_file: Path, tmp_path: Path) -> None:
    run(run_file, ["merge.slices=0", "merge.shares=[]", "encode.query_prompt=what ", "train.epochs=1"])
    described = json.loads((tmp_path / "run/tuned/run.json").read_text())
    assert described["options"]["query_prompt"] == "what "
    config = json.loads((tmp_path / "run/tuned/config_sentence_transformers.json").read_text())
    assert config["prompts"]["query"] == "what "


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[trian]\nepochs = 3", r"run.toml:1: unknown name 'trian'. Did you mean 'train'\?"),
        ("[train]\nepocs = 3", r"run.toml:2: unknown name 'train.epocs'. Did you mean 'epochs'\?"),
        ("[train]\n\nepochs = 'three'", r"run.toml:3: train.epochs: .*number.* \(got 'three'\)"),
        ("[train]\nlearning_rate = 7", r"run.toml:2: train.learning_rate: .*less than 1 \(got 7"),
        ("[mine]\nindex = 'best'", r"run.toml:2: mine.index: .*'exact', 'ivf' or 'hnsw' \(got 'best'\)"),
        ("[merge]\nshares = [0.5, 2]", r"run.toml:2: merge.shares: shares are between 0 and 1"),
        ("base = ", r"run.toml: broken TOML: .*line 1"),
        ("base = 'x'", r"'data' is missing"),
    ],
)
def test_a_wrong_run_file_says_where(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "run.toml"
    data = "" if "base = 'x'" in line else "\n[data]\ntrain = 'x'\n"
    path.write_text(line + data)
    with pytest.raises(UsageError, match=message):
        read_run_file(path)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[data]\ntrain = 'x'\n[train]\nepocs = 3\nbatch_size = 'many'\n")
    with pytest.raises(UsageError) as error:
        read_run_file(path)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epocs=3", r"--set train.epocs=3: unknown name 'train.epocs'. Did you mean 'epochs'\?"),
        ("tarin.epochs=3", r"no section 'tarin'. Did you mean 'train'\?"),
        ("train.epochs", "expected section.name=value"),
        ("train.epochs=many", "--set train.epochs=many: train.epochs"),
        ("train.tasks.faq.temprature=1", r"unknown name 'train.tasks.faq.temprature'. Did you mean 'temperature'\?"),
        ("train.tasks.faq.temperature=99", "train.tasks.faq.temperature: Input should be less than or equal to 10"),
        ("train.task.faq.temperature=1", r"no section 'task'. Did you mean 'tasks'\?"),
    ],
)
def test_wrong_settings(run_file: Path, setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_run_file(run_file, [setting])


def test_settings_go_before_the_file(run_file: Path) -> None:
    options = read_run_file(run_file, ["train.epochs=9", "evaluate.split=dev", "evaluate.metrics=['P@3']"])
    assert options.train.epochs == 9
    assert options.evaluate.split == "dev"
    assert options.evaluate.metrics == ["P@3"]
    assert options.train.learning_rate == 1e-3
    options = read_run_file(run_file, ["train.tasks.faq.temperature=0.5", "train.tasks.faq.loss=['kl']"])
    assert options.train.of_task("faq").temperature == 0.5
    assert options.train.of_task("faq").loss == ["kl"]
    assert options.train.of_task("other") == options.train


def test_a_task_has_a_table_of_its_own(run_file: Path) -> None:
    run_file.write_text(run_file.read_text() + "\n[train.tasks.faq]\nin_batch_negatives = false\n")
    options = read_run_file(run_file)
    assert not options.train.of_task("faq").in_batch_negatives
    run_file.write_text(run_file.read_text() + "temprature = 1\n")
    line = len(run_file.read_text().splitlines())
    with pytest.raises(UsageError, match=rf":{line}: unknown name 'train.tasks.faq.temprature'"):
        read_run_file(run_file)


def test_what_is_watched_is_in_the_curves(run_file: Path, labelled: Path, tmp_path: Path) -> None:
    settings = [f"data.watch=['{labelled}']", "train.general_split=test", "train.epochs=1", "merge.shares=[]"]
    run(run_file, settings)
    points = [json.loads(line) for line in (tmp_path / "run/tuned/curves.jsonl").read_text().splitlines()]
    watched = [point[f"general_{labelled.name}"] for point in points if f"general_{labelled.name}" in point]
    assert len(watched) > 1
    described = json.loads((tmp_path / "run/tuned/run.json").read_text())
    assert described["general"][labelled.name][0] == watched[0]
    with pytest.raises(DataError, match="no such split"):
        run(run_file, [*settings, "train.general_split=dev"])


def test_a_folder_that_is_not_ours_is_left_alone(run_file: Path, tmp_path: Path) -> None:
    begin_run(tmp_path / "run")
    (tmp_path / "run/tuned").mkdir()
    (tmp_path / "run/tuned/precious").write_text("mine")
    with pytest.raises(UsageError, match="was not made by bge-cocktail"):
        run(run_file)
    assert (tmp_path / "run/tuned/precious").read_text() == "mine"


def test_a_plan_knows_how_long_steps_took_and_where_a_training_stands(
    cli: Cli, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BGE_COCKTAIL_CACHE", str(tmp_path / "cache"))  # nothing was timed yet
    short = ("--set", "merge.shares=[]", "--set", "merge.auto=false")

    def plan(*settings: str) -> Any:
        return json.loads(cli("run", run_file, *short, *settings, "--dry-run", "--format", "json").stdout)

    assert {step["seconds"] for step in plan().values()} == {None}
    assert "about" not in cli("run", run_file, "--dry-run").stdout

    def stop(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as stopping:
        stopping.setattr("bge_cocktail.training.engine.callbacks.StopCallback.on_step_begin", stop, raising=False)
        stopped = cli("run", run_file, *short, code=130).stderr
    assert stopped.index("SIGINT: saving a checkpoint") < stopped.index("saved at step 4 of")
    assert re.search(r"saved at step 4 of \d+; the same command goes on", stopped)
    assert plan()["mine"]["state"] == "done"
    assert re.fullmatch(r"saved at step 4 of \d+, goes on", plan()["train tuned"]["state"])

    cli("run", run_file, *short)
    again = plan("--set", f"output={tmp_path / 'other'}", "--set", "train.seed=7")
    took = json.loads((tmp_path / "run/mined/run.json").read_text())["seconds"]
    assert again["mine"]["seconds"] == pytest.approx(took, rel=0.5, abs=0.5)
    # two slices, each trained on half of the records, are what was timed
    assert again["train tuned"]["seconds"] == pytest.approx(2 * again["train variants/slice-1"]["seconds"], rel=0.1)
    assert again["evaluate"]["seconds"] > 0
    assert "about" in cli("run", run_file, "--set", "train.seed=7", "--dry-run").stdout
    (tmp_path / "cache/timings.jsonl").write_text("{")
    assert {step["seconds"] for step in plan("--set", "train.seed=7").values()} == {None}
