"""A training that is killed, told to stop, or finds a damaged checkpoint ends with the weights of one that wasn't."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, leftovers
from test_training_options import data

from bge_cocktail.data.record_files import write_records

COMMAND = ["--epochs", "12", "--batch-size", "5", "--negatives", "2", "--learning-rate", "1e-3", "--precision", "fp32"]
COMMAND += ["--device", "cpu", "--save-steps", "4", "--evaluations", "1"]


def start(records: Path, model: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "bge_cocktail", "train", str(records), "-m", str(model), "-o", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*command, *COMMAND, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for(checkpoints: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until so many checkpoints were begun."""
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        steps = [int(path.name.rsplit("-", 1)[1]) for path in checkpoints.glob("checkpoint-*")]
        if steps and max(steps) >= 4 * count:
            return
        time.sleep(0.002)


@pytest.fixture(scope="module")
def whole(tiny: Path, beir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing happened to; beside it, its records."""
    folder = tmp_path_factory.mktemp("whole")
    write_records(data(beir), folder / "records.jsonl")
    done = start(folder / "records.jsonl", tiny, folder / "out", "--draw", "random")
    assert done.communicate()[0]
    assert done.returncode == 0
    return folder / "out"


def resumed(whole: Path, tiny: Path, out: Path) -> str:
    """Take it up again; it must end with the same weights. What it said."""
    again = start(whole.parent / "records.jsonl", tiny, out, "--draw", "random", "--resume")
    _, said = again.communicate()
    assert again.returncode == 0, said
    for name in ("model.safetensors", "curves.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert not out.with_name("out.unfinished").exists()
    assert leftovers(out.parent) == []
    return said


def test_killed_at_any_moment_it_loses_at_most_save_steps(tiny: Path, whole: Path, tmp_path: Path) -> None:
    generator = random.Random(5)
    checkpoints = tmp_path / "out.unfinished/checkpoints"
    for turn, more in enumerate(("", "--resume")):
        process = start(
            whole.parent / "records.jsonl", tiny, tmp_path / "out", "--draw", "random", *filter(None, [more])
        )
        wait_for(checkpoints, 2 + 4 * turn, process)
        time.sleep(generator.random() * 0.2)
        process.kill()
        process.communicate()
        assert not (tmp_path / "out").exists()
    sealed = sorted(int(path.parent.name.rsplit("-", 1)[1]) for path in checkpoints.glob("checkpoint-*/seal.json"))
    newest = max(int(path.name.rsplit("-", 1)[1]) for path in checkpoints.glob("checkpoint-*"))
    assert newest - sealed[-1] <= 4
    resumed(whole, tiny, tmp_path / "out")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_saves_and_leaves(tiny: Path, whole: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = start(whole.parent / "records.jsonl", tiny, tmp_path / "out", "--draw", "random")
    checkpoints = tmp_path / "out.unfinished/checkpoints"
    wait_for(checkpoints, 1, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert f"{number.name}: saving a checkpoint, then leaving" in said
    assert "with --resume goes on" in said
    assert re.search(r"saved at step \d+ of \d+; it lies in \S*out\.unfinished", said)
    assert not (tmp_path / "out").exists()
    last = max(int(path.name.rsplit("-", 1)[1]) for path in checkpoints.glob("checkpoint-*"))
    state = json.loads((checkpoints / f"checkpoint-{last}/trainer_state.json").read_text())
    assert state["global_step"] == last < state["max_steps"]
    if number == signal.SIGTERM:  # what is resumed is the same after either
        resumed(whole, tiny, tmp_path / "out")


def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(tiny: Path, whole: Path, tmp_path: Path) -> None:
    process = start(whole.parent / "records.jsonl", tiny, tmp_path / "out", "--draw", "random")
    checkpoints = tmp_path / "out.unfinished/checkpoints"
    wait_for(checkpoints, 4, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    newest = max(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    content = (newest / "optimizer.pt").read_bytes()
    (newest / "optimizer.pt").write_bytes(content[: len(content) // 2])
    said = resumed(whole, tiny, tmp_path / "out")
    assert f"{newest.name} is cut off or damaged and is passed over" in said
