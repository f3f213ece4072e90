"""Several seeds, and the search for options."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from conftest import leftovers
from safetensors.numpy import load_file
from test_training import options

from bge_cocktail.core.errors import UsageError
from bge_cocktail.data.beir import read_beir
from bge_cocktail.data.record_files import read_records
from bge_cocktail.training.encoder import train as tune
from bge_cocktail.training.encoder.repeated_runs import SPACE, search_options, train_seeds
from bge_cocktail.training.encoder.train import train

Cli = Callable[..., Result]
QUICK = ["--epochs", "1", "--batch-size", "10", "--learning-rate", "1e-3", "--precision", "fp32", "--device", "cpu"]


def test_seeds_give_mean_spread_and_soup(cli: Cli, tiny: Path, beir: Path, labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        "train",
        beir,
        "-m",
        tiny,
        "-o",
        out,
        "--dev",
        beir,
        "--general",
        labelled,
        "--general-split",
        "test",
        *QUICK,
    ]
    result = cli(*command, "--seeds", "1,2,3", "--format", "json")
    shown = json.loads(result.stdout)
    runs = shown["runs"]
    assert list(runs) == ["seed 1", "seed 2", "seed 3"]
    for name in ("dev", "final loss", f"general {labelled.name}"):
        values = [run[name] for run in runs.values()]
        assert shown["mean"][name] == pytest.approx(statistics.fmean(values))
        assert shown["spread"][name] == pytest.approx(statistics.stdev(values))
    assert shown["spread"]["final loss"] > 0
    # each is what the same training gives alone
    chosen = options(epochs=1, seed=2, negatives=7)
    alone = train(tiny, read_records(beir), tmp_path / "alone", chosen, dev=read_beir(beir, "dev"))
    assert (alone / "model.safetensors").read_bytes() == (out / "seed-2/model.safetensors").read_bytes()
    tensors = [load_file(out / f"seed-{seed}/model.safetensors") for seed in (1, 2, 3)]
    soup = load_file(out / "soup/model.safetensors")
    assert all(np.allclose(soup[name], np.mean([one[name] for one in tensors], axis=0), atol=1e-6) for name in soup)
    assert "dev" in shown["soup"]
    table = cli(*command, "--seeds", "1,2", "--overwrite").stdout
    assert "spread (sd)" in table
    assert leftovers(tmp_path) == []


def test_seeds_that_are_done_are_not_done_again(
    tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, begun = tune.train, []

    def stop_in_the_second(*args: Any, **more: Any) -> Path:
        begun.append(args[3].seed)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr("bge_cocktail.training.encoder.repeated_runs.train", stop_in_the_second)
    records = read_records(beir)
    with pytest.raises(KeyboardInterrupt):
        train_seeds(tiny, records, tmp_path / "out", options(epochs=1), [1, 2])
    assert not (tmp_path / "out").exists()
    found = train_seeds(tiny, records, tmp_path / "out", options(epochs=1), [1, 2], resume=True)
    assert begun == [1, 2, 2]
    assert list(found["runs"]) == ["seed 1", "seed 2"]
    assert not (tmp_path / "out.unfinished").exists()


def test_seeds_of_other_options_are_not_gone_on_with(tiny: Path, beir: Path, tmp_path: Path) -> None:
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished/run.json").write_text('{"key": "another"}')
    with pytest.raises(UsageError, match="was made from other records, options, tasks or another model"):
        train_seeds(tiny, read_records(beir), tmp_path / "out", options(epochs=1), [1, 2], resume=True)


def test_a_trial_that_fails_does_not_end_the_search(tiny: Path, beir: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    few = ["train", beir, "-m", tiny, "-o", out, "--dev", beir, *QUICK, "--search", "batch_size", "--trials", "6"]
    result = cli(*few)
    assert "is larger than the data: 50 pairs" in result.stderr
    assert re.search(r"(64|128)\s+-\s+pruned", result.stdout)
    result = cli(*few, "--loss", "kl", "--overwrite", code=1)
    assert "so that kl could learn nothing" in result.stderr
    assert not (tmp_path / "out.search").exists()


@pytest.mark.parametrize("seeds", ["1", "1,1", "x", "1,-2"])
def test_seeds_are_different_numbers(cli: Cli, tiny: Path, beir: Path, tmp_path: Path, seeds: str) -> None:
    result = cli("train", beir, "-m", tiny, "-o", tmp_path / "out", "--seeds", seeds, *QUICK, code=2)
    said = ("two or more different ones", "expected whole numbers", "seed: Input should be greater than or equal to 0")
    assert any(one in result.stderr for one in said)
    assert list(tmp_path.iterdir()) == []


def test_a_search_keeps_the_best_trial(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["train", beir, "-m", tiny, "-o", out, "--dev", beir, *QUICK, "--search", "learning_rate,temperature"]
    shown = json.loads(cli(*command, "--trials", "4", "--format", "json").stdout)
    trials = shown["trials"]
    assert [trial["trial"] for trial in trials] == [1, 2, 3, 4]
    best = max((trial for trial in trials if trial["state"] == "complete"), key=lambda trial: trial["dev"])
    assert shown["best"] == best["trial"]
    described = json.loads((out / "run.json").read_text())
    assert described["options"]["learning_rate"] == best["learning_rate"]
    assert described["dev_best"] == best["dev"]
    assert described["search"]["trials"] == trials
    assert set(shown["importance"]) == {"learning_rate", "temperature"}
    assert sum(shown["importance"].values()) == pytest.approx(1)
    for name in ("learning_rate", "temperature"):
        low, high = SPACE[name][1:]
        assert all(low <= trial[name] <= high for trial in trials)
        assert len({trial[name] for trial in trials}) > 2
    assert (out / "search.png").read_bytes()[:4] == b"\x89PNG"
    assert leftovers(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("cache", "out")] == []
    assert "importance:" in cli(*command, "--trials", "2", "--overwrite").stdout


def test_a_search_begins_with_the_given_options_and_goes_on(
    tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, begun = tune.train, []

    def stop_in_the_third(*args: Any, **more: Any) -> Path:
        begun.append(args[3])
        if len(begun) == 3:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr("bge_cocktail.training.encoder.repeated_runs.train", stop_in_the_third)
    chosen = options(epochs=1, learning_rate=1e-4, temperature=0.07)
    where: dict[str, Any] = {"trials": 4, "dev": read_beir(beir, "dev")}
    names = ["learning_rate", "temperature"]
    with pytest.raises(KeyboardInterrupt):
        search_options(tiny, read_records(beir), tmp_path / "out", chosen, names, **where)
    assert (begun[0].learning_rate, begun[0].temperature) == (1e-4, 0.07)
    found = search_options(tiny, read_records(beir), tmp_path / "out", chosen, names, **where, resume=True)
    # the third began again with what it had; what was done was not
    assert len(begun) == 5
    for name in names:
        assert getattr(begun[3], name) == pytest.approx(getattr(begun[2], name))
    assert len(found["trials"]) == 4
    other = options(epochs=1, learning_rate=1e-4)
    (tmp_path / "more.search").mkdir()
    (tmp_path / "more.search/run.json").write_text('{"key": "another"}')
    with pytest.raises(UsageError, match="was made from other records, options, tasks or another model"):
        search_options(tiny, read_records(beir), tmp_path / "more", other, names, **where, resume=True)


def test_hopeless_trials_are_ended_early(
    tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def pretend(*args: Any, report: Callable[[int, float], None], **_: Any) -> Path:
        """Good for the first four trials, worse and worse after."""
        number = len(steps)
        steps.append(0)
        for evaluation in range(6):
            steps[-1] += 1
            report(evaluation + 1, 0.9 - 0.1 * number)
        folder: Path = args[2]
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"dev_best": 0.9 - 0.1 * number}))
        return folder

    monkeypatch.setattr("bge_cocktail.training.encoder.repeated_runs.train", pretend)
    found = search_options(
        tiny, read_records(beir), tmp_path / "out", options(), ["temperature"], trials=7, dev=read_beir(beir, "dev")
    )
    assert steps[:4] == [6] * 4
    assert max(steps[4:]) < 6
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 4 + ["pruned"] * 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--search", "learning_rat"], "search: no 'learning_rat'. Did you mean 'learning_rate'"),
        (["--search", "learning_rate", "--seeds", "1,2"], "give one of them"),
    ],
)
def test_searches_that_are_refused(
    cli: Cli, tiny: Path, beir: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    result = cli("train", beir, "-m", tiny, "-o", tmp_path / "out", "--dev", beir, *more, code=2)
    assert message in result.stderr
    result = cli("train", beir, "-m", tiny, "-o", tmp_path / "out", "--search", "epochs", code=2)
    assert "--search needs --dev" in result.stderr
