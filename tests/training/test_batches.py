"""Batches: every row once, one task each, no positive twice; rows that are read from disk."""

from __future__ import annotations

import json
import math
import pickle
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_cocktail.core.errors import DataError
from bge_cocktail.data.record import Record, positives_by_query
from bge_cocktail.data.record_files import RecordStore, open_records, read_records, write_records
from bge_cocktail.models.encoder import load_encoder
from bge_cocktail.models.prompts import Prompts
from bge_cocktail.options import TrainOptions
from bge_cocktail.training.encoder.batches import Batches, Collator
from bge_cocktail.training.encoder.training_pairs import TrainingPairs, hash_records

Cli = Callable[..., Result]


def rows_of(records: list[Record], **changes: Any) -> TrainingPairs:
    return TrainingPairs(records, TrainOptions(negatives=0, **changes))


def batches_of(rows: TrainingPairs, epoch: int = 0, processes: int = 1, **changes: Any) -> list[list[int]]:
    batches = Batches(rows, TrainOptions(negatives=0, **changes), processes)
    batches.set_epoch(epoch)
    found = list(batches)
    assert len(found) == len(batches)
    assert {one for batch in found for one, _ in batch} <= {epoch}
    return [[row for _, row in batch] for batch in found]


@settings(max_examples=60, deadline=None)
@given(
    positives=st.lists(st.integers(0, 12), min_size=4, max_size=80),
    tasks=st.lists(st.sampled_from(["a", "b", "c"]), min_size=80, max_size=80),
    size=st.integers(2, 9),
    mix=st.sampled_from(["shuffled", "round-robin"]),
)
def test_every_row_is_in_one_batch_of_its_task(positives: list[int], tasks: list[str], size: int, mix: str) -> None:
    rows = rows_of([Record(f"q{row}", (f"p{one}",), task=tasks[row]) for row, one in enumerate(positives)])
    found = batches_of(rows, batch_size=size, mix=mix)
    assert sorted(row for batch in found for row in batch) == list(range(len(positives)))
    assert all(len(batch) <= size + 1 for batch in found)
    sizes = Counter(tasks[: len(positives)])
    for batch in found:
        held = {tasks[row] for row in batch}
        # only tasks too small for a batch share one
        assert len(held) == 1 or all(sizes[task] < size for task in held)
    assert batches_of(rows, batch_size=size, mix=mix) == found
    if len(positives) > 20:
        assert batches_of(rows, 1, batch_size=size, mix=mix) != found


@settings(max_examples=40, deadline=None)
@given(copies=st.integers(2, 6), others=st.integers(40, 80), size=st.integers(2, 8), seed=st.integers(0, 99))
def test_no_positive_twice_where_it_can_be_helped(copies: int, others: int, size: int, seed: int) -> None:
    records = [Record(f"q{n}", ("the same",)) for n in range(copies)] + [
        Record(f"r{n}", (f"p{n}",)) for n in range(others)
    ]
    rows = rows_of(records)
    found = batches_of(rows, batch_size=size, seed=seed)
    full = [batch for batch in found if len(batch) >= size]
    assert all(len({records[row].pos[0] for row in batch}) == len(batch) for batch in full[:-1])
    assert sorted(row for batch in found for row in batch) == list(range(len(records)))


def test_all_the_same_positive_is_still_trained() -> None:
    found = batches_of(rows_of([Record(f"q{n}", ("the same",)) for n in range(20)]), batch_size=8)
    assert sorted(map(len, found)) == [4, 8, 8]


def test_no_row_is_left_alone() -> None:
    rows = rows_of([Record(f"q{n}", (f"p{n}",)) for n in range(17)])
    assert min(map(len, batches_of(rows, batch_size=4))) > 1
    # with several processes, each needs a text
    assert min(map(len, batches_of(rows, batch_size=2, processes=4))) >= 4


def test_a_batch_is_shared_by_processes() -> None:
    rows = rows_of([Record(f"q{n}", (f"p{n}",)) for n in range(32)])
    assert batches_of(rows, batch_size=4, processes=2) == batches_of(rows, batch_size=8)


@pytest.mark.parametrize(("power", "expected"), [(1.0, {"big": 16, "small": 4}), (0.0, {"big": 10, "small": 10})])
def test_mixing_by_size(power: float, expected: dict[str, int]) -> None:
    records = [Record(f"q{n}", (f"p{n}",), task="big" if n < 64 else "small") for n in range(80)]
    rows = rows_of(records)
    found = batches_of(rows, batch_size=4, mix_power=power)
    assert Counter(records[batch[0]].task for batch in found) == expected
    seen = Counter(row for batch in found for row in batch if records[row].task == "small")
    assert set(seen) == set(range(64, 80))  # none is forgotten when all are seen more than once
    assert max(seen.values()) - min(seen.values()) <= 1
    turns = [records[batch[0]].task for batch in batches_of(rows, batch_size=4, mix_power=power, mix="round-robin")]
    places = [place for place, task in enumerate(turns) if task == "small"]
    gap = len(turns) / expected["small"]
    assert all(abs((place + 0.5) / gap - (number + 0.5)) < 1 for number, place in enumerate(places))


def test_a_row_is_its_record_with_one_positive_first() -> None:
    record = Record("q", ("a", "b", "a", "c"), ("n",), pos_scores=(1.0, 2.0, 3.0, 4.0))
    rows = TrainingPairs([record], TrainOptions(negatives=1))
    assert [row.pos[0] for row in rows] == ["a", "b", "c"]
    assert [row.pos_scores[0] for row in rows] == [1.0, 2.0, 4.0]
    assert all(set(row.pos) == {"a", "b", "c"} for row in rows)
    assert rows[:2][1] == rows[1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=30))
def test_known_positives_are_all_that_records_give(pairs: list[tuple[int, int]]) -> None:
    records = [
        Record(f"Query {query}" if place % 2 else f"query  {query}", (f"p{one}",))
        for place, (query, one) in enumerate(pairs)
    ]
    rows = rows_of(records)
    found = rows.known_positives([record.query for record in records])
    expected = positives_by_query(records)
    for query, positives in found.items():
        # a query that only one record has needs no look-up
        assert positives == expected[query] or (not positives and sum(q == int(query[-1]) for q, _ in pairs) == 1)


def test_a_large_file_stays_on_disk(tmp_path: Path) -> None:
    x, y = "x" * 500, "y" * 500
    records = [Record(f"q{n}", (f"p {n} {x}",), (f"n {n} {y}",), weight=1.0 + n % 3) for n in range(4000)]
    path = tmp_path / "records.jsonl"
    write_records(records, path)
    store = open_records(path, large=1000)
    assert isinstance(store, RecordStore)
    assert isinstance(open_records(tmp_path, large=1000), RecordStore)
    assert open_records(path) == records
    assert list(store) == records
    assert store[7:9] == records[7:9]
    assert store[-1] == records[-1]
    assert pickle.loads(pickle.dumps(store))[5] == records[5]
    tracemalloc.start()
    rows = TrainingPairs(store, TrainOptions(negatives=1))
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used < 4000 * 150 < path.stat().st_size / 5
    assert rows[11] == records[11]
    assert rows.hash == hash_records(store)
    assert hash_records(records) == hash_records(list(store))


def test_a_wrong_line_of_a_large_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    first, bad, last = ('{"query": "q", "pos": ["p"]}', '{"query": "q", "pos": []}', '{"query": "q", "pos": ["p"]}')
    path.write_text(f"\ufeff{first}\n\n{' ' * 99}{bad}\n{last}")
    store = open_records(path, large=1)
    assert len(store) == 3
    assert store[0] == store[2] == Record("q", ("p",))
    with pytest.raises(DataError, match=r"records.jsonl:3: 'pos' is empty"):
        TrainingPairs(store, TrainOptions())


def test_chunks_hold_each_text_once_sorted_by_tokens(tiny: Path) -> None:
    others = ("the same horse runs", "a")
    records = [Record(f"dog {'cat ' * (row % 7)}", ("the same horse",), others) for row in range(9)]
    chosen = TrainOptions(negatives=2, batch_size=9, chunk_tokens=24)
    model = load_encoder(tiny, device="cpu")
    collator = Collator(model, TrainingPairs(records, chosen), chosen, Prompts())
    batch = collator([(0, row) for row in range(9)])
    assert sorted(batch["targets"]["embedded"].tolist()) == list(range(9 + 3))
    lengths = []
    for chunk in batch["chunks"]:
        mask = chunk["attention_mask"]
        assert mask.numel() <= 24 or len(mask) == 1
        lengths += mask.sum(dim=1).tolist()
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("side", ["right", "left"])
def test_texts_are_tokenised_once_to_what_each_chunk_would_be_alone(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    records = [Record(f"dog {'cat ' * (row % 7)}", (f"the same horse {row}",), ("the cat",)) for row in range(9)]
    chosen = TrainOptions(negatives=1, batch_size=9, chunk_tokens=24)
    model = load_encoder(tiny, device="cpu")
    model.tokenizer.padding_side = side
    documents = dict.fromkeys(text for record in records for text in (*record.pos, *record.neg))
    texts = [record.query for record in records] + list(documents)
    collator = Collator(model, TrainingPairs(records, chosen), chosen, Prompts("a "))
    calls: list[int] = []
    plain = model.preprocess

    def counted(inputs: list[str], **more: object) -> object:
        calls.append(len(inputs))
        return plain(inputs, **more)

    monkeypatch.setattr(model, "preprocess", counted)
    batch = collator([(0, row) for row in range(9)])
    assert sorted(calls) == [9, 10]  # queries with their prompt, and documents
    order = iter(batch["targets"]["embedded"].tolist())
    for chunk in batch["chunks"]:
        places = [next(order) for _ in chunk["input_ids"]]
        alone = plain([texts[place] for place in places], prompt="a " if places[0] < 9 else None)
        assert alone.keys() == chunk.keys()
        assert all(torch.equal(chunk[name], one) for name, one in alone.items() if isinstance(one, torch.Tensor))


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_divide_the_texts(tiny: Path, processes: int) -> None:
    records = [Record(f"dog {'cat ' * (row % 7)}", (f"horse {row}",)) for row in range(8)]
    chosen = TrainOptions(negatives=0, batch_size=2)
    model = load_encoder(tiny, device="cpu")
    rows = TrainingPairs(records, chosen)
    whole = Collator(model, rows, chosen, Prompts("a "))([(0, row) for row in range(8)])
    parts = [
        Collator(model, rows, chosen, Prompts("a "), (number, processes))([(0, row) for row in range(8)])
        for number in range(processes)
    ]
    assert sorted(one for part in parts for one in part["targets"]["embedded"].tolist()) == list(range(16))
    for part in parts:
        assert part["targets"]["counts"] == [len(other["targets"]["embedded"]) for other in parts]
        assert np.array_equal(part["targets"]["relevance"], whole["targets"]["relevance"])
    assert max(parts[0]["targets"]["counts"]) <= math.ceil(16 / processes) + 1


def test_drawn_negatives_differ_by_epoch_and_keep_their_scores(tiny: Path) -> None:
    names = tuple(f"n{n}" for n in range(10))
    record = Record("q", ("p",), names, pos_scores=(99.0,), neg_scores=tuple(float(n) for n in range(10)))
    chosen = TrainOptions(negatives=3, batch_size=2, draw="random")
    rows = TrainingPairs([record, Record("r", ("s",))], chosen)
    collator = Collator(load_encoder(tiny, device="cpu"), rows, chosen, Prompts())
    draws = [tuple(collator([(epoch, 0), (epoch, 1)])["targets"]["scores"][0].tolist()) for epoch in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len(set(draws)) > 2
    assert all(draw[0] == 99.0 and len(set(draw[1:])) == 3 for draw in draws)


def test_small_tasks_share_batches_unless_they_have_their_own_way(tiny: Path) -> None:
    records = [Record(f"q{n}", (f"p{n}",), task=f"task{n % 8}") for n in range(24)]
    assert len(batches_of(rows_of(records), batch_size=8)) == 3
    own = {"tasks": {"task0": {"temperature": 0.1}}}
    found = batches_of(rows_of(records, **own), batch_size=8, **own)
    assert sorted([row for batch in found if batch[0] % 8 == 0 for row in batch]) == [0, 8, 16]


def test_records_from_the_command_line_may_be_large(tiny: Path, beir: Path, tmp_path: Path, cli: Cli) -> None:
    write_records(read_records(beir), tmp_path / "records.jsonl")
    flags = ["--device", "cpu", "--batch-size", "10", "--task", "x.temperature=0.1"]
    result = cli("train", tmp_path / "records.jsonl", "-m", tiny, "-o", tmp_path / "out", *flags, code=2)
    assert "tasks.x: no record is of that task. The records name no tasks." in result.stderr


def test_many_records_on_disk_are_looked_through_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By several processes, each a part: what is known is what one pass over the same records knows."""
    path, count = tmp_path / "many.jsonl", 100_001
    with path.open("w") as file:
        for number in range(count):
            neg = ["b", " "] if number % 50_000 == 7 else ["b"] * (number % 3)
            task = f', "task": "{number % 7}"' if number % 2 else ""
            query, pos = f"q {number // 2}", ["a", f"A {number}"] if number % 10 else [f"q {number // 2}"]
            file.write(f'{{"query": "{query}", "pos": {json.dumps(pos)}, "neg": {json.dumps(neg)}{task}}}\n\n')
    options = TrainOptions(negatives=1)
    with caplog.at_level("WARNING"):
        shared = TrainingPairs(open_records(path, large=0), options)
    assert caplog.text.count("negatives are left out: blank") == 1
    alone = TrainingPairs(read_records(path), options)
    assert len(shared) == len(alone) > count
    assert shared.tasks == alone.tasks
    assert np.array_equal(shared.task_of, alone.task_of)
    assert np.array_equal(shared.query_keys, alone.query_keys)
    assert np.array_equal(shared.positive_keys, alone.positive_keys)
    assert (shared.short, shared.longer, shared.usable) == (alone.short, alone.longer, alone.usable)
    assert shared.asks_for_itself() == alone.asks_for_itself() == count // 10 + 1
    assert [shared[row] for row in (0, 77_777, len(shared) - 1)] == [alone[row] for row in (0, 77_777, len(shared) - 1)]
    with path.open("a") as file:
        file.write('{"query": "last", "pos": ["same"], "neg": ["Same"]}\n')
    with pytest.raises(DataError, match=rf"many.jsonl:{2 * count + 1}: a negative equals a positive"):
        TrainingPairs(open_records(path, large=0), options)
