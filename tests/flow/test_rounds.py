"""Mining again with the tuned model, and runs on prepared data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from conftest import build_model

from bge_cocktail.core.runs import hash_path
from bge_cocktail.data.beir import read_corpus
from bge_cocktail.data.record_files import read_records
from bge_cocktail.mining.miner import mine
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.options import MineOptions

Cli = Callable[..., Result]


@pytest.fixture
def run_file(tiny: Path, beir: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(
        f"""
base = "{tiny}"
output = "{tmp_path / "run"}"
rounds = 2
[data]
train = "{beir}"
dev = "{beir}"
target = ["{beir}"]
[mine]
negatives = 2
relative_margin = "none"
[train]
epochs = 1
batch_size = 8
learning_rate = 1e-3
precision = "fp32"
"""
    )
    return path


def test_each_round_mines_with_the_model_of_the_last(cli: Cli, run_file: Path, beir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    plan = cli("run", run_file, "--dry-run").stdout
    assert plan.count("to do") == 7
    assert "round 1: mine" in plan
    assert "round 1: train" in plan
    cli("run", run_file)
    tuned = folder / "rounds/1/tuned"
    run = json.loads((folder / "mined/run.json").read_text())
    assert run["inputs"][str(tuned)] == hash_path(tuned)
    options = MineOptions(negatives=2, relative_margin=None)
    expected = mine(read_records(beir), CachedEncoder(tuned), options, corpus=read_corpus(beir)).records
    assert read_records(folder / "mined") == expected
    assert read_records(folder / "rounds/1/mined") != expected
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    again = cli("run", run_file)
    assert "rounds/1/mine: done already" in again.stderr
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert "to do" not in cli("run", run_file, "--dry-run").stdout


def test_another_encoder_beside_is_part_of_what_was_done(cli: Cli, run_file: Path, tmp_path: Path) -> None:
    """A run whose candidates came from a further encoder is mined again when that encoder is another."""
    other = build_model(tmp_path / "other", seed=3)
    settings = ["--set", "rounds=1", "--set", f'mine.also=["{other}"]']
    cli("run", run_file, *settings)
    assert "mine: done already" in cli("run", run_file, *settings).stderr
    (other / "model.safetensors").write_bytes(
        (build_model(tmp_path / "third", seed=4) / "model.safetensors").read_bytes()
    )
    assert "mine: done already" not in cli("run", run_file, *settings).stderr


def test_a_run_on_prepared_data(cli: Cli, run_file: Path, beir: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    cli("prepare", beir, "-o", data, "--keep-splits", "--duplicates", "exact")
    settings = [f"data.train={data}", f"data.dev={data}", f'data.target=["{data}"]', "rounds=1"]
    result = cli("run", run_file, "--format", "json", *(word for one in settings for word in ("--set", one)))
    assert json.loads(result.stdout)["models"][1]["target"] > 0.1
