"""Killed at any moment, a full disk, inputs that stay as they are."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from conftest import ROOT
from merge_helpers import raw_model, same_bytes

from bge_cocktail.core.errors import UsageError
from bge_cocktail.core.runs import hash_path
from bge_cocktail.merging.merge import merge, verify_merge
from bge_cocktail.options import MergeOptions

COMMAND = [sys.executable, "-m", "bge_cocktail", "merge"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("faults")
    base = raw_model(folder / "base", 0)
    return [base, *(raw_model(folder / f"tuned{seed}", seed, like=base) for seed in (1, 2))]


def killed_after(seconds: float, arguments: list[str]) -> None:
    process = subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_at_random_moments(models: list[Path], tmp_path: Path) -> None:
    """Whenever it is killed: no output, or a whole one; and the next merge is not disturbed."""
    output = tmp_path / "out"
    arguments = [*map(str, models), "-o", str(output)]
    started = time.monotonic()
    subprocess.run([*COMMAND, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - started
    draw = random.Random(5)
    outcomes = set()
    for _ in range(12):
        shutil.rmtree(output, ignore_errors=True)
        killed_after(draw.uniform(0.3, 1.1) * whole, arguments)
        outcomes.add(output.exists())
        if output.exists():
            assert verify_merge(output)["identical"] is True
    shutil.rmtree(output, ignore_errors=True)
    merge(models, output)
    assert verify_merge(output)["identical"] is True


def test_killed_while_it_replaces(models: list[Path], tmp_path: Path) -> None:
    """With --overwrite there is at every moment the old result or the new one, both whole."""
    output = tmp_path / "out"
    merge(models[:2], output)
    for step in ("rename", "rmtree"):
        code = (
            "import os, shutil, signal\n"
            "import bge_cocktail.core.outputs as p\n"
            f"real = {'p._exchange' if step == 'rename' else 'shutil.rmtree'}\n"
            "def kill(*args, **more):\n"
            f"    {'real(*args)' if step == 'rename' else 'None'}\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            f"{'p._exchange' if step == 'rename' else 'p.shutil.rmtree'} = kill\n"
            "from bge_cocktail import merge; from pathlib import Path\n"
            f"merge({[str(path) for path in models]!r}, Path({str(output)!r}), overwrite=True)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert verify_merge(output)["identical"] is True


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_a_full_disk_leaves_nothing(models: list[Path], tmp_path: Path, method: str) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    more = ["--method", "ties", "--base", str(models[0])] if method == "ties" else []
    arguments = [*COMMAND, *map(str, models[1:]), *more, "-o", str(tmp_path / "out")]
    done = subprocess.run(arguments, cwd=ROOT, preexec_fn=small_files, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nothing half-written was kept" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_inputs_are_never_written(models: list[Path], tmp_path: Path) -> None:
    inputs = [shutil.copytree(path, tmp_path / path.name) for path in models]
    for path in [file for folder in inputs for file in (*folder.rglob("*"), folder)]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = [(hash_path(path), path.stat().st_mtime_ns) for path in inputs]
    merge(inputs[1:], tmp_path / "out", MergeOptions(method="ties", base=str(inputs[0])))
    assert before == [(hash_path(path), path.stat().st_mtime_ns) for path in inputs]
    for path in [file for folder in inputs for file in (folder, *folder.rglob("*"))]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_an_output_that_is_an_input_or_a_base(models: list[Path], tmp_path: Path) -> None:
    copies = [shutil.copytree(path, tmp_path / path.name) for path in models]
    link = tmp_path / "link"
    link.symlink_to(copies[1])
    options = MergeOptions(method="task-arithmetic", base=str(copies[0]))
    for output in (copies[0], copies[1], copies[2] / "inside", link, tmp_path):
        with pytest.raises(UsageError, match="input"):
            merge(copies[1:], output, options, overwrite=True)
    assert all(same_bytes(one, other) for one, other in zip(models, copies, strict=True))


def test_a_model_cut_off_is_named(cli: Callable[..., Result], models: list[Path], tmp_path: Path) -> None:
    broken = shutil.copytree(models[1], tmp_path / "broken")
    with open(broken / "model.safetensors", "r+b") as file:
        file.truncate(5000)
    result = cli("merge", models[0], broken, "-o", tmp_path / "out", code=1)
    assert f"{broken}/model.safetensors" in result.output
    assert "cut off" in result.output
    assert not (tmp_path / "out").exists()
