"""A training takes the memory that there is: what it keeps and what it computes again make no difference."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from test_training import options
from test_training_options import PLAIN, data

from bge_cocktail.core.errors import UsageError
from bge_cocktail.models.encoder import load_encoder
from bge_cocktail.models.prompts import Prompts
from bge_cocktail.training.encoder.batches import Collator
from bge_cocktail.training.encoder.loss import BatchLoss
from bge_cocktail.training.encoder.train import train
from bge_cocktail.training.encoder.training_pairs import TrainingPairs
from bge_cocktail.training.engine import memory


def room_of(tokens: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a step's room be that of so many tokens."""
    monkeypatch.setattr("bge_cocktail.training.encoder.loss.bytes_a_token", lambda *_: 1.0)
    monkeypatch.setattr("bge_cocktail.training.encoder.loss.room_for_step", lambda *_: tokens)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_kept_changes_nothing_in_the_result(
    tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    chosen = {**PLAIN, "dropout": 0.2, "chunk_tokens": 60, "precision": precision}
    weights = []
    for name, tokens, more in (("all", 1e9, {}), ("some", 130, {}), ("none", 1e9, {"gradient_cache": True})):
        room_of(tokens, monkeypatch)
        made = train(tiny, data(beir), tmp_path / name, options(**chosen, **more))
        weights.append((made / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] == weights[2]


def test_as_much_is_kept_as_there_is_room_for(
    tiny: Path, beir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = options(**PLAIN, dropout=0.0, chunk_tokens=60)
    model = load_encoder(tiny, device="cpu")
    rows = TrainingPairs(data(beir), chosen)
    batch = Collator(model, rows, chosen, Prompts())([(0, row) for row in range(10)])
    tokens = [chunk["attention_mask"].numel() for chunk in batch["chunks"]]
    embedded: list[bool] = []
    plain = model.forward

    def forward(*given: object, **more: object) -> object:
        embedded.append(torch.is_grad_enabled())
        return plain(*given, **more)

    monkeypatch.setattr(model, "forward", forward)
    for room in (sum(tokens), sum(tokens) - 1, max(tokens)):
        room_of(room, monkeypatch)
        loss, embedded[:] = BatchLoss(model, chosen, rows.tasks).train(), []
        with caplog.at_level(logging.INFO, "bge_cocktail"):
            loss(batch["chunks"], batch["targets"]).backward()
        kept = sum(sum(tokens[: place + 1]) <= room for place in range(len(tokens)))
        again = len(tokens) - kept
        assert embedded == [True] * kept + [False] * again + [True] * again
    assert f"a batch has {sum(tokens):,} tokens, and there is memory to keep {max(tokens):,} of them" in caplog.text


def test_chunks_and_texts_that_dont_fit_are_made_smaller(
    tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = {**PLAIN, "dropout": 0.0}
    whole = train(tiny, data(beir), tmp_path / "whole", options(**chosen))
    room_of(3, monkeypatch)
    with caplog.at_level(logging.INFO, "bge_cocktail"):
        small = train(tiny, data(beir), tmp_path / "small", options(**chosen))
    one, two = (load_encoder(path, device="cpu").state_dict() for path in (whole, small))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    assert "layers are computed again (checkpointing)" in caplog.text
    assert "a lower `max_length` makes it fit" in caplog.text


def test_a_limit_that_nothing_would_keep_to_is_refused(
    tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="memory is kept to by one process .* take gradient_cache"):
        train(tiny, data(beir), tmp_path / "out", options(memory=2.0, compile=True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="memory is kept to by one process"):
        train(tiny, data(beir), tmp_path / "out", options(memory=2.0))


def test_the_bytes_of_a_token_are_those_that_are_saved() -> None:
    linear = torch.nn.Linear(8, 16)
    texts = torch.randn(10, 8)
    # the input of the linear map, 8 numbers, and the result of the sigmoid, 16; its weights are there anyway
    assert memory.bytes_a_token(lambda: linear(texts).sigmoid(), 10, linear) == 4 * (8 + 16)
    before = torch.get_rng_state()
    memory.bytes_a_token(lambda: torch.nn.functional.dropout(linear(texts)), 10, linear)
    assert torch.equal(before, torch.get_rng_state())


def test_the_limits_of_containers_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def group(path: str, limit: str, used: int, cached: int) -> None:
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        (tmp_path / path / "memory.max").write_text(limit)
        (tmp_path / path / "memory.current").write_text(str(used))
        (tmp_path / path / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")

    group("a", "4000", 1000, 200)
    group("a/b", "max", 500, 0)
    (tmp_path / "self").write_text("1:cpu:/x\n0::/a/b\n")
    free = memory._free_in_cgroups(tmp_path / "self", tmp_path)
    assert list(free) == [3200]
    assert list(memory._free_in_cgroups(tmp_path / "missing", tmp_path)) == []
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "_free_in_cgroups", lambda: iter([10_000_000]))
    assert memory.most_memory(0, cpu) == pytest.approx(memory.used_memory(cpu) + 8_000_000, rel=0.05)
    assert memory.most_memory(2.5, cpu) == 2.5e9


def test_the_room_is_what_weights_gradients_and_optimizer_leave() -> None:
    cpu, model = torch.device("cpu"), torch.nn.Linear(1000, 1000, bias=False)
    used = memory.used_memory(cpu)
    with_model = memory.room_for_step(used + 1e9, cpu, model)
    frozen = memory.room_for_step(used + 1e9, cpu, model.requires_grad_(False))
    assert frozen - with_model == pytest.approx(0.8 * 3 * 4e6, rel=0.5)
    assert memory.room_for_step(used, cpu, model) == 0
