"""A model cut into parts: what its processes learn is what one process learns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.numpy import load_file
from test_processes import check_curves, flags, free_port, launch
from test_training import options
from test_training_options import data

from bge_cocktail.core.errors import UsageError
from bge_cocktail.data.beir import read_beir
from bge_cocktail.data.record_files import write_records
from bge_cocktail.options import TrainOptions
from bge_cocktail.training.encoder.checks import check_training
from bge_cocktail.training.encoder.train import train
from bge_cocktail.training.engine.checkpoints import WEIGHTS, is_whole

ALIKE = {"epochs": 1, "negatives": 2, "dropout": 0.0, "patience": 0}
GIVEN = {"batch_size": 5, "learning_rate": 1e-3, "precision": "fp32", "device": "cpu"}


def switches(more: dict[str, object]) -> tuple[list[str], dict[str, object]]:
    shown = {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in more.items()}
    on = [f"--{name.replace('_', '-')}" for name, value in shown.items() if value is True]
    return on, {name: value for name, value in shown.items() if value is not True}


@pytest.mark.parametrize(
    "more",
    [
        {
            **{"loss": ["info-nce", "kl"], "mask_margin": 0.1, "anchor": 1.0, "layer_decay": 0.8},
            **{"gradient_cache": True, "task_heads": True, "chunk_tokens": 60, "accumulate": 2},
        },
        {"lora": 4, "matryoshka": [8], "gradient_checkpointing": True, "chunk_tokens": 60, "accumulate": 2},
    ],
    ids=["many options", "lora"],
)
def test_parts_learn_what_the_whole_does(tiny: Path, beir: Path, tmp_path: Path, more: dict[str, object]) -> None:
    write_records(data(beir), tmp_path / "records.jsonl")
    one = train(tiny, data(beir), tmp_path / "one", options(**ALIKE, **more, batch_size=10), dev=read_beir(beir, "dev"))
    on, given = switches(more)
    where = [tmp_path / "records.jsonl", "-m", tiny, "-o", tmp_path / "two", "--dev", beir]
    result = launch(*where, *on, "--shard", **ALIKE, **given, **GIVEN)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("trained") == 1
    check_curves(one, tmp_path / "two")
    mine, theirs = load_file(one / "model.safetensors"), load_file(tmp_path / "two/model.safetensors")
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        if not name.endswith("key.bias"):  # attention doesn't depend on it: its gradient is rounding alone
            assert np.allclose(value, theirs[name], atol=2e-4), name
    # nothing of the cutting is left in what was written
    files = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in (one, tmp_path / "two")]
    assert files[0] == files[1]
    for path in (tmp_path / "two").rglob("*.json"):
        assert "FSDP" not in path.read_text(), path
    assert not (tmp_path / "two.unfinished").exists()


def test_it_goes_on_where_it_stopped(tiny: Path, beir: Path, tmp_path: Path) -> None:
    write_records(data(beir), tmp_path / "records.jsonl")
    common = {**GIVEN, "epochs": 2, "negatives": 2, "patience": 0, "save_steps": 2}
    where = [tmp_path / "records.jsonl", "-m", tiny, "--dev", beir, "--shard"]
    result = launch(*where, "-o", tmp_path / "straight", **common)
    assert result.returncode == 0, result.stderr
    unfinished = tmp_path / "cut.unfinished"
    stop(unfinished, *where, "-o", tmp_path / "cut", **common)
    kept = sorted((unfinished / "checkpoints").glob("checkpoint-*"), key=lambda one: int(one.name[11:]))
    assert all(is_whole(one) for one in kept)
    step = int(kept[-1].name[11:])
    assert 0 < step < 10
    weights = load_file(kept[-1] / WEIGHTS)
    assert {name: one.shape for name, one in weights.items() if "word_embeddings" in name}.popitem()[1][1] == 32
    state = torch.load(kept[-1] / "optimizer.pt", weights_only=True)
    assert {type(one) for kept_ in state["state"].values() for one in kept_.values()} == {torch.Tensor}
    result = launch(*where, "-o", tmp_path / "cut", "--resume", **common)
    assert result.returncode == 0, result.stderr
    for name, value in load_file(tmp_path / "straight/model.safetensors").items():
        assert np.array_equal(value, load_file(tmp_path / "cut/model.safetensors")[name]), name


def stop(unfinished: Path, *arguments: object, **values: object) -> None:
    """Start a training, and tell one of its processes to stop when it has a checkpoint."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command += ["--master_addr=127.0.0.1", "-m", "bge_cocktail", "train"]
    command += map(str, [*arguments, *flags(**values)])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        deadline = time.monotonic() + 120
        while not list(unfinished.glob("checkpoints/checkpoint-*/seal.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        children = subprocess.run(["pgrep", "-P", str(started.pid)], capture_output=True, text=True, check=True)
        os.kill(int(children.stdout.split()[1]), signal.SIGTERM)
        started.communicate(timeout=120)
        assert started.returncode != 0


def test_what_does_not_go_with_it_is_refused(tiny: Path, beir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        check_training(tiny, TrainOptions(shard=True, compile=True, optimizer="adafactor"))
    assert "compile" in str(error.value)
    assert "adafactor" in str(error.value)
    with pytest.raises(UsageError, match="several processes"):
        train(tiny, data(beir), tmp_path / "out", options(shard=True))
    assert not (tmp_path / "out.unfinished").exists()
