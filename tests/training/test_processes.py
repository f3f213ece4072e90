"""Several processes: what they learn is what one process learns from the joined batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from conftest import ROOT
from safetensors.numpy import load_file
from test_training import options
from test_training_options import data

from bge_cocktail.data.beir import read_beir
from bge_cocktail.data.record_files import write_records
from bge_cocktail.data.sources import Source
from bge_cocktail.options import ClassifyOptions
from bge_cocktail.training.classifier.data import read_class_data
from bge_cocktail.training.classifier.train import train_classifier
from bge_cocktail.training.encoder.train import train


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def launch(
    *arguments: object, processes: int = 2, command: tuple[str, ...] = ("train",), **options_: object
) -> subprocess.CompletedProcess[str]:
    """The command line under torchrun, on the CPU (gloo)."""
    started = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={free_port()}"]
    started += ["--master_addr=127.0.0.1", "-m", "bge_cocktail", *command]
    started += map(str, [*arguments, *flags(**options_)])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *started], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


def check_curves(one: Path, two: Path) -> None:
    """Losses, and what was watched, are the same at every step."""
    curves = [
        [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()] for folder in (one, two)
    ]
    assert len(curves[0]) == len(curves[1])
    for mine, theirs in zip(*curves, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert theirs[name] == pytest.approx(value, abs=2e-5), (mine["step"], name)


def flags(**values: object) -> list[object]:
    """As the command line takes them."""
    return [part for name, value in values.items() for part in ("--" + name.replace("_", "-"), value)]


def test_two_processes_learn_what_one_does(tiny: Path, beir: Path, tmp_path: Path) -> None:
    """With many options at once: those of losses, and those of memory."""
    more: dict[str, object] = {"loss": ["info-nce", "kl"], "mask_margin": 0.1, "anchor": 1.0}
    more |= {"gradient_cache": True, "task_heads": True, "chunk_tokens": 60}
    write_records(data(beir), tmp_path / "records.jsonl")
    alike = {"epochs": 1, "negatives": 2, "dropout": 0.0, "patience": 0}
    one = train(tiny, data(beir), tmp_path / "one", options(**alike, **more, batch_size=10), dev=read_beir(beir, "dev"))
    shown = {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in more.items()}
    switches = [f"--{name.replace('_', '-')}" for name, value in shown.items() if value is True]
    given = {name: value for name, value in shown.items() if value is not True}
    where = [tmp_path / "records.jsonl", "-m", tiny, "-o", tmp_path / "two", "--dev", beir]
    result = launch(
        *where, *switches, **alike, **given, batch_size=5, learning_rate=1e-3, precision="fp32", device="cpu"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("trained") == 1
    described = json.loads((tmp_path / "two/run.json").read_text())
    assert described["processes"] == 2
    check_curves(one, tmp_path / "two")
    for name, value in load_file(one / "model.safetensors").items():
        assert np.allclose(value, load_file(tmp_path / "two/model.safetensors")[name], atol=2e-4), name
    assert not (tmp_path / "two.unfinished").exists()


def test_without_cross_device_negatives_each_process_keeps_to_itself(tiny: Path, beir: Path, tmp_path: Path) -> None:
    write_records(data(beir), tmp_path / "records.jsonl")
    common = {"epochs": 0.2, "negatives": 0, "dropout": 0.0}
    # with them, two processes see what one sees of the joined batch
    joined = train(tiny, data(beir), tmp_path / "joined", options(**common, batch_size=10))
    where = [tmp_path / "records.jsonl", "-m", tiny, "-o", tmp_path / "apart", "--no-cross-device-negatives"]
    result = launch(*where, **common, batch_size=5, precision="fp32", device="cpu")
    assert result.returncode == 0, result.stderr
    losses = [
        json.loads((one / "curves.jsonl").read_text().splitlines()[0])["loss"] for one in (joined, tmp_path / "apart")
    ]
    assert losses[1] < losses[0] - 0.1


def test_a_refusal_is_said_by_one_process_in_one_line(tiny: Path, beir: Path, tmp_path: Path) -> None:
    write_records(data(beir)[:12], tmp_path / "records.jsonl")
    where = [tmp_path / "records.jsonl", "-m", tiny, "-o", tmp_path / "out"]
    result = launch(*where, batch_size=5, device="cpu", seeds="1,2")
    assert "start it without torchrun" in result.stderr
    result = launch(*where, batch_size=10, device="cpu")
    assert result.returncode != 0
    assert "batch_size=10 in each of 2 processes is larger than the data: 12 pairs" in result.stderr
    assert not (tmp_path / "out").exists()


def test_two_processes_train_the_classifier_that_one_does(tiny: Path, labelled: Path, tmp_path: Path) -> None:
    common: dict[str, object] = {"epochs": 2, "dropout": 0.0, "head_dropout": 0.0, "learning_rate": 1e-3}
    common |= {"precision": "fp32", "device": "cpu", "seed": 3}
    one = ClassifyOptions.model_validate({**common, "batch_size": 12})
    train_classifier(tiny, read_class_data(Source(str(labelled)), one), tmp_path / "one", one)
    where = (labelled, "-m", tiny, "-o", tmp_path / "two")
    result = launch(*where, command=("classify", "train"), **common, batch_size=6)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("trained") == 1
    assert json.loads((tmp_path / "two/run.json").read_text())["processes"] == 2
    mine, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in mine.items():
        assert np.allclose(value, theirs[name], atol=2e-4), name
    assert (tmp_path / "one/classifier.json").read_text()[:200] == (tmp_path / "two/classifier.json").read_text()[:200]


def test_an_encoder_in_parts_is_refused(
    cli: Callable[..., Result], tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    result = cli("train", beir, "-m", tiny, "-o", tmp_path / "out", code=2)
    assert "FSDP of accelerate isn't supported" in result.stderr
    assert not (tmp_path / "out.unfinished").exists()


@pytest.mark.parametrize("met", [True, False])
def test_a_process_that_met_others_ends_before_a_thread_of_gloo_could_abort_it(met: bool) -> None:
    # what the interpreter drops at its own end says so: there a thread of gloo that waits for its lock would abort
    script = f"""
import atexit
import torch.distributed as dist
from bge_cocktail.training.engine.processes import end_process
if {met}:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    dist.barrier()
class Last:
    def __del__(self):
        print("the interpreter's end")
last = Last()
atexit.register(print, "what was registered")
print("the command", end=" ")
end_process(3)
raise SystemExit(3)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 3
    said = "the command what was registered\n"
    assert (ended.stdout, ended.stderr) == (said if met else said + "the interpreter's end\n", "")
