"""Every option of training does what it says, and is refused where it can't."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from test_training import options, weights

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.data.record import Record
from bge_cocktail.data.record_files import read_records
from bge_cocktail.models.encoder import load_encoder
from bge_cocktail.models.layers import layer_of
from bge_cocktail.models.prompts import Prompts
from bge_cocktail.options import TrainOptions
from bge_cocktail.training.encoder.batches import Collator
from bge_cocktail.training.encoder.loss import BatchLoss, make_trainer
from bge_cocktail.training.encoder.train import train
from bge_cocktail.training.encoder.training_pairs import TrainingPairs
from bge_cocktail.training.engine.parameters import learning_rates, prepare_parameters
from bge_cocktail.training.engine.trainer import DeviceSetup

PLAIN = {"epochs": 1, "negatives": 2}


def data(beir: Path) -> list[Record]:
    """Fifty records of two tasks, each with three negatives and a teacher's scores; some queries are long."""
    records = read_records(beir)
    return [
        Record(
            record.query + " near the house in the garden beside the river" * (row % 2),
            record.pos,
            tuple(records[(row + step) % 50].pos[0] for step in (6, 12, 18)),
            pos_scores=(4.0 + row % 3,),
            neg_scores=(1.0, 0.5, -row / 10),
            task="odd" if row % 2 else "even",
        )
        for row, record in enumerate(records)
    ]


@pytest.fixture(scope="module")
def plain(tiny: Path, beir: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights without any option."""
    return weights(train(tiny, data(beir), tmp_path_factory.mktemp("plain") / "out", options(**PLAIN)))


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 2},
        {"batch_size": 20},
        {"accumulate": 2},
        {"learning_rate": 5e-4},
        {"warmup": 0.5},
        {"schedule": "cosine"},
        {"schedule": "inverse_sqrt"},
        {"optimizer": "adafactor"},
        {"weight_decay": 0.5},
        {"layer_decay": 0.5},
        {"max_grad_norm": 0.01},
        {"temperature": 0.5},
        {"negatives": 0},
        {"draw": "random"},
        {"in_batch_negatives": False},
        {"directions": ["query-document", "document-query"]},
        {"directions": ["query-document", "document-query"], "partition": "apart"},
        {"mask_margin": -0.2},
        {"label_smoothing": 0.2},
        {"loss": ["kl"]},
        {"loss": ["kl"], "teacher_temperature": 3.0},
        {"loss": ["info-nce", "m3"]},
        {"loss": ["info-nce", "m3"], "loss_weights": [1.0, 0.1]},
        {"loss": ["margin-mse"]},
        {"loss": ["cosent"]},
        {"loss": ["angle"]},
        {"matryoshka": [16, 8]},
        {"anchor": 5.0},
        {"anchor": 0.5, "anchor_by": "weights"},
        {"mix": "round-robin"},
        {"tasks": {"odd": {"temperature": 0.5}}},
        {"tasks": {"odd": {"query_prompt": "what "}}},
        {"tasks": {"odd": {"loss": ["kl"]}}},
        {"tasks": {"odd": {"in_batch_negatives": False, "negatives": 1}}},
        {"tasks": {"odd": {"query_max_length": 8}}},
        {"query_prompt": "what "},
        {"document_prompt": "the "},
        {"query_max_length": 8},
        {"max_length": 8},
        {"freeze_embeddings": True},
        {"freeze_layers": 1},
        {"fixed_positions": True},
        {"reinit_layers": 1},
        {"dropout": 0.0},
        {"lora": 4},
        {"lora": 4, "lora_alpha": 2},
        {"dense": 8},
        {"task_heads": True},
        {"precision": "bf16"},
        {"seed": 14},
    ],
    ids=str,
)
def test_every_option_changes_something(
    tiny: Path, beir: Path, plain: bytes, tmp_path: Path, change: dict[str, Any]
) -> None:
    out = train(tiny, data(beir), tmp_path / "out", options(**{**PLAIN, **change}))
    assert weights(out) != plain
    load_encoder(out, device="cpu").encode(["red dog"])


@pytest.mark.parametrize("change", [{"workers": 1}, {"gradient_checkpointing": True}, {"save_steps": 2}], ids=str)
def test_what_costs_or_spares_only_time_and_memory(
    tiny: Path, beir: Path, plain: bytes, tmp_path: Path, change: dict[str, Any]
) -> None:
    assert weights(train(tiny, data(beir), tmp_path / "out", options(**{**PLAIN, **change}))) == plain


@pytest.mark.parametrize(
    "change",
    [{"chunk_tokens": 30}, {"gradient_cache": True}, {"gradient_cache": True, "chunk_tokens": 30}],
    ids=str,
)
@pytest.mark.parametrize("more", [{}, {"anchor": 2.0}, {"task_heads": True}, {"matryoshka": [8]}], ids=str)
def test_chunks_and_the_gradient_cache_give_the_plain_gradient(
    tiny: Path, beir: Path, change: dict[str, Any], more: dict[str, Any]
) -> None:
    """Loss and gradients of one batch to 1e-5, without dropout."""

    def gradients(**changes: Any) -> tuple[float, list[torch.Tensor]]:
        chosen = options(**PLAIN, dropout=0.0, loss=["info-nce", "kl"], **more, **changes)
        model = load_encoder(tiny, device="cpu")
        prepare_parameters(model, chosen)
        rows = TrainingPairs(data(beir), chosen)
        loss = BatchLoss(model, chosen, rows.tasks).train()
        batch = Collator(model, rows, chosen, Prompts())([(0, row) for row in range(0, 40, 2)])
        found = loss(batch["chunks"], batch["targets"])
        total = sum(found.values()) if isinstance(found, dict) else found
        total.backward()
        return total.item(), [one.grad for one in loss.parameters() if one.grad is not None]

    (one, ours), (other, theirs) = gradients(**change), gradients()
    assert one == pytest.approx(other, abs=1e-5)
    assert len(ours) == len(theirs) > 30
    for mine, plain_one in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, plain_one, atol=1e-5)


def test_the_gradient_cache_repeats_dropout(tiny: Path, beir: Path, tmp_path: Path) -> None:
    """With dropout, the second embedding draws the same masks as the first: the gradient is the loss's own."""
    chosen = options(**PLAIN, gradient_cache=True, chunk_tokens=30)
    model = load_encoder(tiny, device="cpu")
    rows = TrainingPairs(data(beir), chosen)
    loss = BatchLoss(model, chosen, rows.tasks).train()
    batch = Collator(model, rows, chosen, Prompts())([(0, row) for row in range(0, 20, 2)])
    name, weight = next((name, one) for name, one in model.named_parameters() if "value.weight" in name)

    def value() -> torch.Tensor:
        torch.manual_seed(3)
        return loss(batch["chunks"], batch["targets"])

    value().backward()
    gradient, step = weight.grad[0, 0].item(), 1e-2
    with torch.no_grad():
        weight[0, 0] += step
        above = value().item()
        weight[0, 0] -= 2 * step
        below = value().item()
    assert (above - below) / (2 * step) == pytest.approx(gradient, rel=0.02, abs=1e-3), name


def moved(before: Path, after: Path) -> set[str]:
    """Names of the tensors that are other than they were."""
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert old.keys() == new.keys()
    return {name for name, value in old.items() if not np.array_equal(value, new[name])}


def test_frozen_parameters_stay_bit_for_bit(tiny: Path, beir: Path, tmp_path: Path) -> None:
    def names(name: str, **changes: Any) -> set[str]:
        return moved(tiny, train(tiny, data(beir), tmp_path / name, options(**PLAIN, **changes)))

    everything = names("all")
    assert any("word_embeddings" in name for name in everything)
    assert names("a", freeze_embeddings=True) == {name for name in everything if "embeddings" not in name}
    assert names("b", freeze_layers=1) == {name for name in everything if layer_of(name) != 0}
    assert names("c", fixed_positions=True) == {name for name in everything if "position_embeddings" not in name}


def test_lora_is_merged_into_the_weights_that_it_targets(tiny: Path, beir: Path, tmp_path: Path) -> None:
    changed = moved(tiny, train(tiny, data(beir), tmp_path / "out", options(**PLAIN, lora=4)))
    assert changed
    assert all(layer_of(name) is not None or "pooler" in name for name in changed)
    assert not any("bias" in name or "LayerNorm" in name for name in changed)
    for name in changed:  # of low rank
        old, new = (load_file(folder / "model.safetensors")[name] for folder in (tiny, tmp_path / "out"))
        singular = np.linalg.svd(new.astype(float) - old, compute_uv=False)
        assert (singular > 1e-5 * singular[0]).sum() <= 4


def test_dense_is_stored_and_works_alone(tiny: Path, beir: Path, tmp_path: Path) -> None:
    out = train(tiny, data(beir), tmp_path / "out", options(**PLAIN, dense=8))
    model = load_encoder(out, device="cpu")
    embeddings = model.encode(["red dog", "blue cat"])
    assert embeddings.shape == (2, 8)
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert [module["type"].rsplit(".", 1)[1] for module in json.loads((out / "modules.json").read_text())] == [
        "Transformer",
        "Pooling",
        "Dense",
        "Normalize",
    ]


def test_layers_learn_at_falling_rates(tiny: Path, tmp_path: Path) -> None:
    chosen = options(layer_decay=0.5)
    model = load_encoder(tiny, device="cpu")
    trainer = trainer_of(model, chosen, tmp_path)
    trainer.create_optimizer()
    rate_of = {id(parameter): group["lr"] for group in trainer.optimizer.param_groups for parameter in group["params"]}
    decay_of = {
        id(parameter): group["weight_decay"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        depth = {None: 0, 0: 1, 1: 0}[layer_of(name)] if "embeddings" not in name else 2
        assert rate_of[id(parameter)] == pytest.approx(1e-3 * 0.5**depth), name
        plain_one = name.endswith("bias") or "LayerNorm" in name
        assert decay_of[id(parameter)] == (0 if plain_one else 0.01), name
    assert learning_rates(model, options()) == {}


def trainer_of(model: Any, chosen: TrainOptions, folder: Path) -> Any:
    records = [Record(f"q{row}", (f"p{row}",)) for row in range(20)]
    rows = TrainingPairs(records, chosen)
    return make_trainer(model, rows, chosen, Prompts(), folder, DeviceSetup())


def test_the_anchor_holds_on_to_the_base(tiny: Path, beir: Path, tmp_path: Path) -> None:
    def distance(name: str, **changes: Any) -> tuple[float, float]:
        """How far weights and embeddings went."""
        out = train(tiny, data(beir), tmp_path / name, options(**{**PLAIN, "epochs": 4}, dropout=0.0, **changes))
        old, new = (load_file(folder / "model.safetensors") for folder in (tiny, out))
        texts = [record.query for record in data(beir)]
        before, after = (load_encoder(folder, device="cpu").encode(texts) for folder in (tiny, out))
        return sum(float(((new[one] - old[one]) ** 2).sum()) for one in old), float(
            (1 - (before * after).sum(1)).mean()
        )

    weights_free, embeddings_free = distance("free")
    assert distance("by-weights", anchor=3.0, anchor_by="weights")[0] < 0.8 * weights_free
    assert distance("by-embeddings", anchor=20.0)[1] < 0.5 * embeddings_free


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adamw_torhc"}, "optimizer: transformers has no 'adamw_torhc'. Did you mean 'adamw_torch'"),
        ({"schedule": "cosin"}, "schedule: transformers has no 'cosin'. Did you mean 'cosine'"),
        ({"loss": ["info-nec"]}, "no loss 'info-nec'. Did you mean 'info-nce'"),
        ({"loss": ["kl", "kl"]}, "a loss is named twice"),
        ({"loss_weights": [1.0, 2.0]}, "loss_weights has 2 numbers for 1 losses"),
        ({"partition": "apart", "directions": ["query-document", "query-query"]}, "partition=apart goes only with"),
        ({"directions": ["query-query"]}, "directions must have query-document"),
        ({"loss": ["kl"], "mask_margin": 0.1}, "mask_margin goes with the loss info-nce, not with kl"),
        ({"teacher_temperature": 2.0}, "teacher_temperature goes with the losses kl and m3"),
        ({"report_to": ["tensorbord"]}, "report_to: no 'tensorbord'. Did you mean 'tensorboard'"),
        ({"lora": 4, "anchor": 1.0, "anchor_by": "weights"}, "weights that lora doesn't train"),
        ({"lora_alpha": 4}, "lora_alpha goes with lora"),
        ({"anchor_by": "weights"}, "anchor_by goes with anchor, which is 0"),
        ({"lora": 4, "reinit_layers": 1}, "lora would keep frozen"),
        ({"lora": 4, "freeze_layers": 1}, "lora freezes all of the base"),
        ({"dense": 8, "anchor": 1.0}, "dense changes the embeddings' size"),
        ({"anchor": 1.0, "reinit_layers": 1}, "which reinit_layers leaves"),
        ({"task_heads": True, "matryoshka": [8]}, "task_heads put a map behind them"),
        ({"schedule": "cosine_with_min_lr"}, "schedule cosine_with_min_lr needs arguments of its own"),
        ({"schedule": "reduce_lr_on_plateau"}, "schedule reduce_lr_on_plateau needs arguments of its own"),
        ({"freeze_layers": 3}, "freeze_layers=3: the model has 2 layers"),
        ({"reinit_layers": 3}, "reinit_layers=3: the model has 2 layers"),
        ({"freeze_layers": 1, "reinit_layers": 2}, "freeze_layers and reinit_layers share layers"),
        ({"matryoshka": [16, 32]}, "matryoshka=32: sizes are below the embeddings' 32"),
        ({"tf32": True}, "tf32 is an NVIDIA GPU's, this is cpu"),
        ({"precision": "fp8"}, "precision fp8 needs a CUDA device, this is cpu"),
        ({"tasks": {"odd": {"max_length": 99}}}, "max_length=99 is more than the model's 64 positions"),
        (
            {"tasks": {"od": {"temperature": 1.0}}},
            "tasks.od: no record is of that task. Did you mean 'odd'",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_refusals_come_before_the_model_is_loaded(
    tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("bge_cocktail.training.encoder.train.load_encoder", None)
    with pytest.raises(UsageError, match=message):
        train(tiny, data(beir), tmp_path / "out", options(**change))
    assert list(tmp_path.iterdir()) == []


def test_all_that_is_wrong_is_said_at_once(tiny: Path, beir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        train(tiny, data(beir), tmp_path / "out", options(loss=["kk"], optimizer="x", max_length=99, tf32=True))
    assert len(str(caught.value).splitlines()) == 4


def test_losses_need_what_they_learn_from(tiny: Path, beir: Path, tmp_path: Path) -> None:
    bare = [Record(record.query, record.pos, record.neg) for record in data(beir)]
    with pytest.raises(DataError, match="the data has no scores .* so that kl could learn nothing"):
        train(tiny, bare, tmp_path / "out", options(loss=["kl"]))
    for nothing in ({"negatives": 0, "in_batch_negatives": False}, {"loss": ["kl"], "negatives": 0}):
        with pytest.raises(DataError, match="could learn nothing"):
            train(tiny, data(beir), tmp_path / "out", options(**nothing))
    half = [Record(r.query, r.pos, r.neg, pos_scores=(1.0,)) for r in bare]
    with pytest.raises(DataError, match="so that margin-mse could learn nothing"):
        train(tiny, half, tmp_path / "out", options(loss=["margin-mse"]))
    with pytest.raises(DataError, match="record 1 .* has 3 negatives, 4 are asked for"):
        train(tiny, bare, tmp_path / "out", options(negatives=4, too_few_negatives="refuse"))
    with pytest.raises(UsageError, match="larger than the data: 0 pairs"):
        train(tiny, bare, tmp_path / "out", options(negatives=4, too_few_negatives="drop"))
    light = [Record(r.query, r.pos, task="light", weight=0.0) for r in bare[:3]]
    with pytest.raises(DataError, match="task 'light' has no record to train on: all were left out"):
        train(tiny, [*bare, *light], tmp_path / "out", options())


def test_what_is_left_out_is_said(tiny: Path, beir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [*data(beir), Record("red dog", ("the red dog",), pos_scores=(1.0,), task="odd")]
    with caplog.at_level(logging.INFO, "bge_cocktail"):
        train(tiny, records, tmp_path / "out", options(**PLAIN, too_few_negatives="drop", accumulate=2))
    assert "1 records have fewer negatives than asked for and are left out" in caplog.text
    assert "50 of 50 rows have more than 2 negatives; the first are used" in caplog.text
    assert "each batch has only its own in-batch negatives (batch_size=20 would have them all, and" in caplog.text


def test_compile_gives_nearly_the_same(tiny: Path, beir: Path, tmp_path: Path) -> None:
    chosen = {**PLAIN, "dropout": 0.0, "epochs": 0.3}
    one = train(tiny, data(beir), tmp_path / "one", options(**chosen))
    two = train(tiny, data(beir), tmp_path / "two", options(**chosen, compile=True))
    for name, value in load_file(one / "model.safetensors").items():
        assert np.allclose(value, load_file(two / "model.safetensors")[name], atol=1e-4), name


def test_curves_go_to_tensorboard(tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    train(tiny, data(beir), tmp_path / "out", options(**PLAIN, report_to=["tensorboard"]))
    assert list((tmp_path / "board").rglob("events.out.tfevents.*"))


def test_the_gradient_cache_scales_the_heads_gradients_too(tiny: Path, beir: Path) -> None:
    def gradients(cached: bool) -> list[torch.Tensor]:
        chosen = options(**PLAIN, dropout=0.0, task_heads=True, gradient_cache=cached)
        model = load_encoder(tiny, device="cpu")
        prepare_parameters(model, chosen)
        rows = TrainingPairs(data(beir), chosen)
        loss = BatchLoss(model, chosen, rows.tasks).train()
        collator = Collator(model, rows, chosen, Prompts())
        for first in (0, 20):  # two batches of a step, as accumulation has them
            batch = collator([(0, row) for row in range(first, first + 20, 2)])
            (loss(batch["chunks"], batch["targets"]) / 2).backward()
        return [one.grad for one in loss.parameters() if one.grad is not None]

    for mine, theirs in zip(gradients(True), gradients(False), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_nothing_left_to_train_is_refused(tiny: Path, beir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="freeze_embeddings, freeze_layers leave nothing to train"):
        train(tiny, data(beir), tmp_path / "out", options(freeze_embeddings=True, freeze_layers=2))
    with pytest.raises(UsageError, match="optimizer galore_adamw: "):
        train(tiny, data(beir), tmp_path / "out", options(optimizer="galore_adamw"))


def test_options_of_one_tasks_loss_are_global(tiny: Path, beir: Path, tmp_path: Path) -> None:
    chosen = options(**PLAIN, teacher_temperature=2.0, tasks={"odd": {"loss": ["kl"]}})
    assert train(tiny, data(beir), tmp_path / "out", chosen).is_dir()
