"""Models kept up to date, and models of samples: what is drawn, what is merged, what a second call finds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from conftest import build_model, leftovers
from hypothesis import given
from hypothesis import strategies as st
from merge_helpers import same_bytes
from test_training import options

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.data.record import Record
from bge_cocktail.data.record_files import read_records, write_records
from bge_cocktail.merging.merge import merge
from bge_cocktail.options import MergeOptions
from bge_cocktail.training.encoder import update as updating
from bge_cocktail.training.encoder.repeated_runs import draw_of_tasks, samples_of
from bge_cocktail.training.encoder.train import train
from bge_cocktail.training.encoder.update import update

Cli = Callable[..., Result]
QUICK = ("--epochs", 1, "--batch-size", 8, "--negatives", 0, "--precision", "fp32", "--device", "cpu")


def some(count: int, tasks: int = 1) -> list[Record]:
    return [Record(f"query {row}", (f"answer {row}",), task=f"t{row % tasks}") for row in range(count)]


@given(count=st.integers(3, 60), tasks=st.integers(1, 3), percent=st.integers(1, 100), seed=st.integers(0, 9))
def test_samples_take_so_much_of_each_task(count: int, tasks: int, percent: int, seed: int) -> None:
    records = some(count, tasks)
    drawn = [records[place] for place in draw_of_tasks(records, percent / 100, seed)]
    sizes = Counter(record.task for record in records)
    assert Counter(record.task for record in drawn) == {
        task: int(np.ceil(percent / 100 * size)) for task, size in sizes.items()
    }
    assert len({record.query for record in drawn}) == len(drawn)
    assert draw_of_tasks(records, percent / 100, seed) == draw_of_tasks(records, percent / 100, seed)


def test_the_rest_is_what_the_first_sample_leaves() -> None:
    records = some(41, 2)
    samples = samples_of(records, ["50", "rest"], 1)
    assert sorted(record.query for part in samples.values() for record in part) == sorted(r.query for r in records)
    assert samples_of(records, ["100", "80"], 1)["100"] == records
    for wrong in (["80"], ["80", "80"], ["0", "50"], ["101", "5"], ["rest", "50"], ["half", "rest"], ["50", ""]):
        with pytest.raises(UsageError, match="bag: two percentages or more"):
            samples_of(records, wrong, 1)


def test_bagged_models_are_merged_on_the_sphere(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    shown = json.loads(
        cli("train", beir, "-m", tiny, *QUICK, "--bag", "60,100", "-o", tmp_path / "out", "--format", "json").stdout
    )
    assert list(shown["runs"]) == ["sample 60", "sample 100"]
    parts = [tmp_path / f"out/sample-{sample}" for sample in (60, 100)]
    merge(parts, tmp_path / "sphere", MergeOptions(method="karcher"))
    assert same_bytes(tmp_path / "sphere", tmp_path / "out/soup")
    records = [json.loads((part / "run.json").read_text())["records"] for part in parts]
    assert records[0] == int(np.ceil(0.6 * records[1]))
    said = cli("train", beir, "-m", tiny, "--bag", "50", "-o", tmp_path / "o", code=2).stderr
    assert "two percentages or more" in said
    assert (
        "give one of them"
        in cli("train", beir, "-m", tiny, "--bag", "50,rest", "--seeds", "1,2", "-o", tmp_path / "o", code=2).stderr
    )


@pytest.fixture(scope="module")
def old(beir: Path) -> list[Record]:
    return read_records(beir)[:20]


@pytest.fixture(scope="module")
def fresh(beir: Path) -> list[Record]:
    return read_records(beir)[20:]


@pytest.fixture(scope="module")
def in_use(tiny: Path, old: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny, old, tmp_path_factory.mktemp("use") / "model", chosen())


def chosen(**changes: Any) -> Any:
    return options(**{"epochs": 1, "batch_size": 8, "negatives": 0, **changes})


def test_an_update_tunes_on_what_is_new_and_a_core(
    cli: Cli, tiny: Path, in_use: Path, old: list[Record], fresh: list[Record], tmp_path: Path
) -> None:
    write_records([*fresh, old[0]], tmp_path / "new.jsonl")  # one of them is known
    write_records(old, tmp_path / "old.jsonl")
    where = ("update", in_use, tmp_path / "new.jsonl", "--old", tmp_path / "old.jsonl", "--base", tiny)
    shown = cli(*where, *QUICK, "--learning-rate", 1e-3, "-o", tmp_path / "out").stdout
    assert f"old records   8 of {len(old)}" in shown
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["records"] == {"new": len(fresh), "old": 8, "all_old": len(old)}
    assert json.loads((tmp_path / "out/tuned/run.json").read_text())["records"] == len(fresh) + 8
    merge([tmp_path / "out/tuned", in_use], tmp_path / "by-hand", MergeOptions(method="karcher", share=0.5))
    assert same_bytes(tmp_path / "by-hand", tmp_path / "out/updated")
    assert leftovers(tmp_path) == []
    assert "exists already" in cli(*where, "-o", tmp_path / "out", code=2).stderr
    write_records(old[:3], tmp_path / "new.jsonl")
    assert "nothing is new" in cli(*where, "-o", tmp_path / "o2", code=2).stderr


def test_an_update_goes_on_where_it_was_cut(
    tiny: Path, in_use: Path, old: list[Record], fresh: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CutOffError(Exception):
        pass

    def cut(*_: object, **__: object) -> None:
        raise CutOffError

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(updating, "merge", cut)
        with pytest.raises(CutOffError):
            update(in_use, tiny, fresh, old, out, chosen())
    assert (tmp_path / "out.unfinished/tuned/run.json").is_file()
    with monkeypatch.context() as patched:
        patched.setattr(updating, "train", cut)  # it isn't trained again
        update(in_use, tiny, fresh, old, out, chosen(), resume=True)
    update(in_use, tiny, fresh, old, tmp_path / "whole", chosen())
    assert same_bytes(out / "updated", tmp_path / "whole/updated")
    assert leftovers(tmp_path) == []


def test_models_that_do_not_go_together_are_refused_before_training(
    tiny: Path, old: list[Record], fresh: list[Record], tmp_path: Path
) -> None:
    other = build_model(tmp_path / "other", hidden=16)
    with pytest.raises(DataError, match="can't be merged"):
        update(other, tiny, fresh, old, tmp_path / "out", chosen())
    with pytest.raises(UsageError, match="lies between 0 and 1"):
        update(tiny, tiny, fresh, old, tmp_path / "out", chosen(), core=1.5)
    assert not (tmp_path / "out").exists()
