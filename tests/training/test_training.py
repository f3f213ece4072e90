"""Training: it learns, repeats, resumes, stops, and says what it can't do."""

from __future__ import annotations

import json
import logging
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import leftovers, python
from safetensors.numpy import load_file

from bge_cocktail.core.devices import resolve_precision
from bge_cocktail.core.errors import CocktailError, UsageError
from bge_cocktail.data.beir import read_beir
from bge_cocktail.data.record import Record
from bge_cocktail.data.record_files import read_records
from bge_cocktail.evaluating.evaluate import evaluate, open_tasks
from bge_cocktail.models.encoder import CachedEncoder, load_encoder
from bge_cocktail.models.prompts import Prompts
from bge_cocktail.options import EncodeOptions, EvaluateOptions, TrainOptions
from bge_cocktail.training.encoder import validation as watching
from bge_cocktail.training.encoder.batches import Collator
from bge_cocktail.training.encoder.loss import BatchLoss, make_trainer
from bge_cocktail.training.encoder.train import train, training_key
from bge_cocktail.training.encoder.training_pairs import TrainingPairs
from bge_cocktail.training.engine import checkpoints
from bge_cocktail.training.engine.callbacks import CheckpointCallback
from bge_cocktail.training.engine.checkpoints import last_checkpoint, seal
from bge_cocktail.training.engine.run import PRIMARY, Interrupted
from bge_cocktail.training.engine.trainer import DeviceSetup

FAST = {
    "epochs": 2,
    "batch_size": 10,
    "learning_rate": 1e-3,
    "negatives": 1,
    "precision": "fp32",
    "device": "cpu",
}


def options(**changes: object) -> TrainOptions:
    return TrainOptions.model_validate({**FAST, **changes})


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_it_learns_and_keeps_the_best(tiny: Path, beir: Path, tmp_path: Path) -> None:
    out = train(tiny, read_records(beir), tmp_path / "out", options(epochs=8, patience=0), dev=read_beir(beir, "dev"))
    described = json.loads((out / "run.json").read_text())
    assert described["dev_best"] > described["dev_before"] + 0.05
    points = [json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()]
    assert points[0]["step"] == 0
    assert points[0]["dev_nDCG@10"] == described["dev_before"]
    dev_losses = [point["dev_loss"] for point in points if "dev_loss" in point]
    assert min(dev_losses) < dev_losses[0] / 2
    losses = [point["loss"] for point in points if "loss" in point]
    assert losses[-1] < losses[0] / 2
    assert described["dev_best"] == max(point["dev_nDCG@10"] for point in points if "dev_loss" in point)
    # the folder holds the best weights: judged again they give the best dev value
    from bge_cocktail.evaluating.tasks.retrieval import judge

    again = judge(CachedEncoder(out), read_beir(beir, "dev"))["nDCG@10"]
    assert np.mean(list(again.values())) == pytest.approx(described["dev_best"], abs=1e-6)
    assert not (tmp_path / "out.unfinished").exists()
    assert leftovers(tmp_path) == []


def test_overfits_sixteen_records(tiny: Path, beir: Path, tmp_path: Path) -> None:
    records = read_records(beir)[::3][:16]
    out = train(
        tiny,
        records,
        tmp_path / "out",
        options(epochs=80, batch_size=16, schedule="constant", temperature=0.1),
    )
    assert json.loads((out / "run.json").read_text())["final_loss"] < 0.1


def test_same_seed_same_bytes_other_seed_other_bytes(tiny: Path, beir: Path, tmp_path: Path) -> None:
    records = read_records(beir)
    one = train(tiny, records, tmp_path / "one", options())
    two = train(tiny, records, tmp_path / "two", options())
    three = train(tiny, records, tmp_path / "three", options(seed=14))
    assert weights(one) == weights(two)
    assert weights(one) != weights(three)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 1},
        {"batch_size": 20},
        {"learning_rate": 5e-4},
        {"warmup": 0.5},
        {"schedule": "cosine"},
        {"weight_decay": 0.5},
        {"max_grad_norm": 0.01},
        {"temperature": 0.5},
        {"negatives": 0},
        {"precision": "bf16"},
        {"max_length": 8},
        {"query_prompt": "what "},
        {"document_prompt": "the "},
    ],
    ids=str,
)
def test_every_option_changes_something(tiny: Path, beir: Path, tmp_path: Path, change: dict[str, object]) -> None:
    records = [
        Record(record.query, record.pos, (read_records(beir)[(row + 7) % 50].pos[0],))
        for row, record in enumerate(read_records(beir))
    ]
    plain = train(tiny, records, tmp_path / "plain", options())
    changed = train(tiny, records, tmp_path / "changed", options(**change))
    assert weights(plain) != weights(changed)


def test_weights_of_records_count(tiny: Path, beir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = read_records(beir)
    heavy = [Record(r.query, r.pos, weight=5.0 if row % 2 else 0.1) for row, r in enumerate(records)]
    assert weights(train(tiny, records, tmp_path / "a", options())) != weights(
        train(tiny, heavy, tmp_path / "b", options())
    )
    zero = [Record("dog", ("cat",), weight=0.0), *records]
    with caplog.at_level(logging.WARNING, "bge_cocktail"):
        assert weights(train(tiny, zero, tmp_path / "c", options())) == weights(tmp_path / "a")
    assert "1 records have weight 0 and are left out" in caplog.text


def test_a_prompt_of_a_record_goes_before_the_models(tiny: Path, beir: Path, tmp_path: Path) -> None:
    records = read_records(beir)
    own = [Record(r.query, r.pos, prompt="what ") for r in records]
    global_ = train(tiny, records, tmp_path / "a", options(query_prompt="what "))
    single = train(tiny, own, tmp_path / "b", options())
    assert weights(global_) == weights(single)
    # only the option is stored in the model
    assert load_encoder(global_, device="cpu").prompts["query"] == "what "
    assert load_encoder(single, device="cpu").prompts["query"] == ""


def test_resume_ends_with_the_same_weights(
    tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two checkpoints and taken up again: bit for bit the uninterrupted run."""
    records, dev = read_records(beir), read_beir(beir, "dev")
    whole = train(tiny, records, tmp_path / "whole", options(epochs=3), dev=dev)

    class Stop(Exception):
        pass

    def stop_at(step: int) -> None:
        real = BatchLoss.forward
        count = 0

        def forward(self: BatchLoss, *args: object) -> object:
            nonlocal count
            count += 1
            if count > step:
                raise Stop
            return real(self, *args)

        monkeypatch.setattr(BatchLoss, "forward", forward)

    stop_at(8)
    with pytest.raises(Stop):
        train(tiny, records, tmp_path / "cut", options(epochs=3), dev=dev)
    monkeypatch.undo()
    assert not (tmp_path / "cut").exists()
    assert last_checkpoint(tmp_path / "cut.unfinished/checkpoints").name == "checkpoint-6"
    resumed = train(tiny, records, tmp_path / "cut", options(epochs=3), dev=dev, resume=True)
    assert weights(resumed) == weights(whole)
    assert (resumed / "curves.jsonl").read_text().splitlines() == (whole / "curves.jsonl").read_text().splitlines()


@pytest.mark.parametrize("step", [2, 3, 15])
def test_told_to_stop_at_any_step_it_goes_on_the_same(
    tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Between evaluations, at one, and in the last step, after which there is nothing to go on with."""
    records, dev, chosen = read_records(beir), read_beir(beir, "dev"), options(epochs=3, patience=0)
    whole = train(tiny, records, tmp_path / "whole", chosen, dev=dev)
    real, count = BatchLoss.forward, 0

    def forward(self: BatchLoss, *args: object) -> object:
        nonlocal count
        count += 1
        if count == step:
            signal.raise_signal(signal.SIGTERM)
        return real(self, *args)

    monkeypatch.setattr(BatchLoss, "forward", forward)
    if step < 15:
        with pytest.raises(Interrupted):
            train(tiny, records, tmp_path / "cut", chosen, dev=dev)
        monkeypatch.undo()
        assert last_checkpoint(tmp_path / "cut.unfinished/checkpoints").name == f"checkpoint-{step}"
    cut = train(tiny, records, tmp_path / "cut", chosen, dev=dev, resume=step < 15)
    assert (cut / "curves.jsonl").read_text() == (whole / "curves.jsonl").read_text()
    assert weights(cut) == weights(whole)


def test_the_mean_of_the_last_evaluations(
    tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of their checkpoints, whatever was saved between them; dev judges the mean."""
    records, dev, chosen = read_records(beir), read_beir(beir, "dev"), options(epochs=3, patience=0, average=3)
    kept: dict[str, list[np.ndarray]] = {}
    real = checkpoints.load_mean

    def load_mean(parts: torch.nn.Module, folders: Sequence[Path]) -> None:
        assert [folder.name for folder in folders] == ["checkpoint-15", "checkpoint-12", "checkpoint-9"]
        for folder in folders:
            for name, value in load_file(folder / "model.safetensors").items():
                kept.setdefault(name, []).append(value)
        real(parts, folders)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "load_mean", load_mean)
        whole = train(tiny, records, tmp_path / "whole", chosen, dev=dev)
    for name, value in load_file(whole / "model.safetensors").items():
        (expected,) = (np.mean(all_of, axis=0, dtype=np.float64) for key, all_of in kept.items() if key.endswith(name))
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-8)
    described = json.loads((whole / "run.json").read_text())
    assert (described["averaged_steps"], described["best_step"]) == ([9, 12, 15], 15)
    assert "the mean of whose weights at 9, 12, 15 this is" in (whole / "README.md").read_text()
    judged = evaluate(CachedEncoder(whole, EncodeOptions()), open_tasks([beir], []), EvaluateOptions(split="dev"))
    assert described["dev_best"] == pytest.approx(next(one.value for one in judged if one.main), abs=1e-6)
    points = [json.loads(line) for line in (whole / "curves.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points if PRIMARY in point] == [0, 3, 6, 9, 12, 15]

    count, forward = 0, BatchLoss.forward

    def stops(self: BatchLoss, *args: object) -> object:
        nonlocal count
        count += 1
        if count == 10:
            signal.raise_signal(signal.SIGTERM)
        return forward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(BatchLoss, "forward", stops)
        with pytest.raises(Interrupted):
            train(tiny, records, tmp_path / "cut", chosen, dev=dev)
    assert weights(train(tiny, records, tmp_path / "cut", chosen, dev=dev, resume=True)) == weights(whole)


def test_what_had_stopped_early_is_not_trained_on(
    tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the last step, before the model was written."""
    values = [0.5, 0.6, 0.4, 0.3]
    monkeypatch.setattr(watching, "judge", lambda *_: {"nDCG@10": {"q": values.pop(0)}})
    patient = options(epochs=9, patience=2, evaluations=1)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bge_cocktail.training.encoder.train._write", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, read_records(beir), tmp_path / "out", patient, dev=read_beir(beir, "dev"))
    out = train(tiny, read_records(beir), tmp_path / "out", patient, dev=read_beir(beir, "dev"), resume=True)
    described = json.loads((out / "run.json").read_text())
    assert (described["steps"], described["best_step"], described["dev_best"]) == (15, 5, 0.6)


def test_a_damaged_newer_checkpoint_never_comes_back(tmp_path: Path) -> None:
    """Saving seals what was saved, and not what happens to have a higher number."""
    for step in (5, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/model.safetensors").write_bytes(b"content")
    seal(tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-6").mkdir()
    (tmp_path / "checkpoint-6/model.safetensors").write_bytes(b"content")
    state = SimpleNamespace(is_world_process_zero=True, global_step=6, best_global_step=None, max_steps=9)
    arguments = SimpleNamespace(world_size=1, output_dir=str(tmp_path), save_steps=5)
    CheckpointCallback().on_save(arguments, state, None)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-6"
    seal(tmp_path / "checkpoint-6")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-6"


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in ("model.safetensors", "optimizer.pt"):
            (tmp_path / f"checkpoint-{step}" / name).write_bytes(b"content")
        if step < 12:  # the last was cut off before its seal
            seal(tmp_path / f"checkpoint-{step}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-8"
    (tmp_path / "checkpoint-8/optimizer.pt").write_bytes(b"conten")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    (tmp_path / "checkpoint-4/optimizer.pt").unlink()
    assert last_checkpoint(tmp_path) is None


def test_resume_of_another_run_is_refused(tiny: Path, beir: Path, tmp_path: Path) -> None:
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished/run.json").write_text('{"key": "other"}')
    with pytest.raises(CocktailError, match="was made from other records, options, tasks or another model"):
        train(tiny, read_records(beir), tmp_path / "out", options(), resume=True)


def test_the_key_is_the_one_in_run_json(tiny: Path, beir: Path, tmp_path: Path) -> None:
    records, dev = read_records(beir), read_beir(beir, "dev")
    out = train(tiny, records, tmp_path / "out", options(epochs=1), dev=dev)
    key = json.loads((out / "run.json").read_text())["key"]
    assert key == training_key(tiny, records, options(epochs=1), dev)
    assert key != training_key(tiny, records[:-1], options(epochs=1), dev)
    assert key != training_key(tiny, records, options(epochs=1), None)


def test_early_stopping_stops(tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.5, 0.6, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0])
    monkeypatch.setattr(watching, "judge", lambda *_: {"nDCG@10": {"q": next(values)}})
    out = train(
        tiny,
        read_records(beir),
        tmp_path / "out",
        options(epochs=9, patience=2, evaluations=1),
        dev=read_beir(beir, "dev"),
    )
    described = json.loads((out / "run.json").read_text())
    assert described["steps"] == 15
    assert described["best_step"] == 5
    assert described["dev_best"] == 0.6


def test_resume_goes_on_counting_its_patience(
    tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off after two bad evaluations of three: one more is enough to stop."""
    values = [0.5, 0.6, 0.4, 0.3]

    def judge(*_: object) -> dict[str, dict[str, float]]:
        if len(values) == 1:
            values.clear()
            raise KeyboardInterrupt
        return {"nDCG@10": {"q": values.pop(0) if values else 0.2}}

    monkeypatch.setattr(watching, "judge", judge)
    patient = options(epochs=9, patience=3, evaluations=1)
    dev = read_beir(beir, "dev")
    with pytest.raises(KeyboardInterrupt):
        train(tiny, read_records(beir), tmp_path / "out", patient, dev=dev)
    out = train(tiny, read_records(beir), tmp_path / "out", patient, dev=dev, resume=True)
    # best at step 5; worse at 10 (kept), 15 (cut off there, judged again) and 20
    assert json.loads((out / "run.json").read_text())["steps"] == 20


def test_teacher_scores_that_are_not_used_are_said(
    tiny: Path, beir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scored = [Record(r.query, r.pos, pos_scores=(1.0,)) for r in read_records(beir)]
    train(tiny, scored, tmp_path / "out", options(epochs=1))
    assert "teacher scores, which info-nce doesn't use" in caplog.text


def test_a_refusal_leaves_no_unfinished_folder(tiny: Path, beir: Path, tmp_path: Path) -> None:
    for wrong in ({"precision": "fp16"}, {"device": "cuda:7"}, {"max_length": 999}):
        with pytest.raises(UsageError):
            train(tiny, read_records(beir), tmp_path / "out", options(**wrong))
    assert list(tmp_path.iterdir()) == []


def test_no_gain_is_said(
    tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watching, "judge", lambda *_: {"nDCG@10": {"q": 0.5}})
    with caplog.at_level(logging.WARNING, "bge_cocktail"):
        train(tiny, read_records(beir), tmp_path / "out", options(epochs=1), dev=read_beir(beir, "dev"))
    assert "tuning did not raise dev nDCG@10 (base 0.5000, best 0.5000)" in caplog.text


def test_a_loss_that_is_no_number_stops(
    tiny: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def no_number(queries: torch.Tensor, documents: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return (queries.sum() + documents.sum()) * torch.nan

    monkeypatch.setattr("bge_cocktail.losses.total.info_nce", no_number)
    with pytest.raises(CocktailError, match="step 1: the loss is nan; .* records of the batch are in .*bad_batch"):
        train(tiny, read_records(beir), tmp_path / "out", options())
    bad = read_records(tmp_path / "out.unfinished/bad_batch.jsonl")
    assert len(bad) == 10
    assert all(record in read_records(beir) for record in bad)
    assert not (tmp_path / "out").exists()


def test_chunked_batches_give_the_plain_loss(tiny: Path, beir: Path) -> None:
    """Sorting and cutting texts changes nothing: the loss of one padded batch, per step."""
    import torch
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    records = read_records(beir)[::2][:12]
    model = load_encoder(tiny, device="cpu").eval()
    plain = options(negatives=0, chunk_tokens=40)
    collator = Collator(model, TrainingPairs(records, plain), plain, Prompts())
    batch = collator([(0, row) for row in range(12)])
    assert len(batch["chunks"]) > 3
    with torch.no_grad():
        ours = BatchLoss(model, plain)(batch["chunks"], batch["targets"])
        peer = MultipleNegativesRankingLoss(model, scale=20.0)
        features = [model.preprocess([r.query for r in records]), model.preprocess([r.pos[0] for r in records])]
        theirs = peer(features, None)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)


def test_every_positive_is_a_row(tiny: Path, tmp_path: Path) -> None:
    records = [
        Record(f"which {name}", (f"red {name}", f"blue {name}", f"red {name}")) for name in ("dog", "cat", "horse")
    ]
    out = train(tiny, records, tmp_path / "out", options(epochs=1, batch_size=2))
    assert json.loads((out / "run.json").read_text())["rows"] == 6


def test_refusals(tiny: Path, tmp_path: Path) -> None:
    few = [Record("dog", ("cat",))]
    with pytest.raises(UsageError, match="batch_size=10 is larger than the data: 1 pairs"):
        train(tiny, few, tmp_path / "out", options())
    with pytest.raises(UsageError, match="precision fp16 needs a CUDA device"):
        resolve_precision("fp16", "cpu")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        train(tiny, few, tmp_path / "taken", options())
    with pytest.raises(UsageError, match="was not made by bge-cocktail"):
        train(tiny, few, tmp_path / "taken", options(), overwrite=True)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_while_checkpoints_are_written(tiny: Path, beir: Path, tmp_path: Path) -> None:
    """A limit on file size stands for it; what was there before is still good to resume from."""
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import torch, sentence_transformers, bge_cocktail.training.engine.trainer\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))\n"
        "from bge_cocktail.cli import main\n"
        f"main(['train', {str(beir)!r}, '-m', {str(tiny)!r}, '-o', {str(tmp_path / 'out')!r}, '--batch-size', '10'])"
    )
    result = python(code, PYTHONDONTWRITEBYTECODE="1")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr, result.stderr
    assert "could not be written" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_truncated_model_is_one_line(tiny: Path, beir: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny, tmp_path / "broken")
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CocktailError, match="broken: the model can't be loaded"):
        train(broken, read_records(beir), tmp_path / "out", options())


def test_the_tokenizer_is_the_bases(tiny: Path, beir: Path, tmp_path: Path) -> None:
    out = train(tiny, read_records(beir), tmp_path / "out", options(epochs=1))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (tiny / name).read_bytes()
    assert load_encoder(out, device="cpu").max_seq_length == 48
    assert load_file(out / "model.safetensors").keys() == load_file(tiny / "model.safetensors").keys()


def test_dev_and_checkpoints_follow_the_options(tiny: Path, beir: Path, tmp_path: Path) -> None:
    rows = TrainingPairs(read_records(beir), options())
    model = load_encoder(tiny, device="cpu")
    for evaluations, every in ((1, 5), (2, 3), (99, 1)):
        trainer = make_trainer(
            model,
            rows,
            options(evaluations=evaluations),
            Prompts(),
            tmp_path,
            DeviceSetup(),
            metrics=lambda _: {"dev": 0.0},
            primary="dev",
        )
        assert trainer.args.eval_steps == trainer.args.save_steps == every


def test_kept_memory_is_given_back_when_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    from bge_cocktail.training.engine import callbacks

    sizes = [100, 110, 125, 131, 140, 133, 120]
    freed: list[int] = []
    steps = iter(range(7))
    monkeypatch.setattr(callbacks, "resident_memory", lambda: sizes[next(steps)])
    monkeypatch.setattr(callbacks, "free_memory", lambda: freed.append(1))
    callback = callbacks.MemoryCallback()
    counts = []
    for _ in sizes:
        callback.on_step_end(None, None, None)
        counts.append(len(freed))
    assert counts == [0, 0, 0, 0, 1, 2, 2]  # above 1.2 times 110


def test_freed_memory_goes_back_to_the_system() -> None:
    code = (
        "import torch\n"
        "from bge_cocktail.training.engine.malloc import free_memory, keep_memory\n"
        "from bge_cocktail.training.engine.memory import resident_memory\n"
        "keep_memory(); before = resident_memory(); kept = [torch.ones(1 << 20) for _ in range(100)]\n"
        "full = resident_memory(); last = kept[-1]; del kept; held = resident_memory(); free_memory()\n"
        "print(full - before > 300e6, full - held < 100e6, resident_memory() - before < 100e6)"
    )
    assert python(code).stdout.split() == ["True"] * 3
