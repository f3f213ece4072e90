"""The reproduction of LM-Cocktail on toy tasks and 2-layer models: every way once, resumed, its numbers by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, WORDS, write_lines

from bge_cocktail.data.record import normalise
from bge_cocktail.options import EncodeOptions, TrainOptions

sys.path.insert(0, str(ROOT / "scripts"))
import reproduce_lm_cocktail as script
from reproduction import tables, ways
from reproduction.tasks import Sizes, TaskSource, examples_of, prepare_tasks, task_folder, training_records


@pytest.fixture(scope="module")
def sources(beir: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TaskSource]:
    folder = tmp_path_factory.mktemp("sources")
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS[:20], 4)) for _ in range(120)]
    pairs = []
    for row in range(0, 120, 2):
        one, other, score = texts[row], texts[row + 1], row % 6
        same = [word for word in one.split() for _ in range(1)]
        pairs.append({"sentence1": one, "sentence2": " ".join(same) if score > 3 else other, "score": score})
    for split, rows in (("train", pairs[:30]), ("dev", pairs[30:45]), ("test", pairs[45:])):
        write_lines(folder / f"similar/{split}.jsonl", rows)
    write_lines(folder / "asked.jsonl", [{"query": f"what is {text}", "pos": [f"the {text}"]} for text in texts[:60]])
    return [
        TaskSource("animals", "retrieval", str(beir)),
        TaskSource("kinds", "labels", str(labelled), train=40),
        TaskSource("similar", "sts", str(folder / "similar"), scale=5.0),
        TaskSource("asked", "pairs", str(folder / "asked.jsonl")),
    ]


SIZES = Sizes(train=20, dev=10, test=12, documents=40, negatives=2)
TRAINING = TrainOptions(
    epochs=1, batch_size=8, learning_rate=1e-3, negatives=1, patience=0, precision="fp32", device="cpu"
)
ENCODING = EncodeOptions(device="cpu")


def test_tasks_keep_their_splits_apart(sources: list[TaskSource], tiny: Path, tmp_path: Path) -> None:
    prepare_tasks(sources, tmp_path, SIZES, tiny, ENCODING)
    for source in sources:
        folder, records = task_folder(tmp_path, source.name), training_records(tmp_path, source.name)
        assert len(records) <= (source.train or 20)
        assert examples_of(tmp_path, source.name, 5)
        assert all(example.neg for example in examples_of(tmp_path, source.name, 5))
        if (folder / "queries.jsonl").is_file():
            asked = {
                normalise(json.loads(line)["text"]) for line in (folder / "queries.jsonl").read_text().splitlines()
            }
            assert not asked & {normalise(record.query) for record in records}
            assert len((folder / "corpus.jsonl").read_text().splitlines()) <= 40
    scored = training_records(tmp_path, "similar")
    assert all(len(record.pos_scores) == len(record.pos) for record in scored)


def test_every_way_once_and_not_twice(
    sources: list[TaskSource], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(ways, "SHARES", [0.5])
    reproduction = script.Reproduction(script.Recipe(sources, SIZES, TRAINING, ENCODING), tiny, tmp_path)
    assert not reproduction.run([1], seconds=0, targets=["animals"])
    assert reproduction.run([1], targets=["animals"])
    base, found = reproduction.read()
    assert {way for _, _, way in found} == {*ways.WAYS, *ways.NEW_TASK_WAYS}
    assert all(scores.keys() == base.keys() for (_, _, way), scores in found.items() if way in ways.WAYS)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}
    assert reproduction.run([1], targets=["animals"])
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}
    content = script.report(reproduction, tmp_path / "tables")
    assert [row["way"] for row in content["rows"]] == list(ways.WAYS)
    # by hand: what the target gained, and the mean of the others
    scores = found[1, "animals", "cocktail of 2"]
    gained = 100 * (scores["animals"]["value"] - base["animals"]["value"])
    others = np.mean([100 * (scores[name]["value"] - base[name]["value"]) for name in base if name != "animals"])
    row = next(row for row in content["rows"] if row["way"] == "cocktail of 2")
    assert row["target"][0] == pytest.approx(gained)
    assert row["others"][0] == pytest.approx(others)
    assert "cocktail of 2" in (tmp_path / "tables/lm_cocktail.md").read_text()
    assert "met: " in (said := capsys.readouterr().out) or "missed: " in said


def scores(**values: float) -> dict[str, dict[str, Any]]:
    return {name: {"metric": "m", "value": value} for name, value in values.items()}


def test_tables_by_hand() -> None:
    base = scores(a=0.5, b=0.5, c=0.5)
    results = {
        (1, "a", "tuned"): scores(a=0.6, b=0.4, c=0.5),
        (1, "b", "tuned"): scores(a=0.5, b=0.7, c=0.5),
        (1, "a", "auto"): scores(a=0.6, b=0.5, c=0.5),
        (1, "b", "auto"): scores(a=0.5, b=0.65, c=0.5),
        (1, "a", "cocktail of 2"): scores(a=0.55, b=0.5, c=0.5),
        (1, "b", "cocktail of 2"): scores(a=0.5, b=0.6, c=0.5),
        (1, "a", "uniform soup"): scores(a=0.52),
        (1, "a", "search, 32 examples"): scores(a=0.53),
    }
    rows = {row["way"]: row for row in tables.summary(base, results, ["tuned", "auto", "cocktail of 2"])}
    assert rows["tuned"]["target"][0] == pytest.approx(15)
    assert rows["tuned"]["others"][0] == pytest.approx(-2.5)
    assert rows["auto"]["kept"][0] == pytest.approx(25 / 30)
    unseen = tables.new_tasks(base, results, ["uniform soup", "search, 32 examples"])
    assert [row["target"][0] for row in unseen] == pytest.approx([2, 3])
    bars = tables.bars(list(rows.values()), unseen, results)
    assert [bar["met"] for bar in bars] == [True, False, False, True, True]


def test_the_full_recipe_says_what_it_costs(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduce_lm_cocktail.py", "full", "-o", "nowhere", "--dry-run"])
    script.main()
    said = capsys.readouterr().out
    assert "fetched: sentence-transformers/gooaq" in said
    assert "hours on one H100" in said
    assert not Path("nowhere").exists()
