#!/usr/bin/env python3
"""What a GPU makes of this tool, in a few minutes, beside sentence-transformers in the same run.

    .venv/bin/python scripts/gpu_check.py [--minutes 8] [--device cuda] [--out FOLDER]

One file that needs this package only: the model is of BERT-base's size with random weights, the texts are made, and
nothing is fetched. Its parts, in this order, none begun after so many minutes: packed and padded batches give the same;
losses of all precisions; tokens a second of trainings, and their share of the card's peak; the gradient cache;
texts embedded a second; search. Ends with one JSON line: name, ours, peer, ratio, target, met; with --out, the table is
also written as gpu.json. --device cpu tries the script itself, with a small model; without a GPU it says so.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bge_cocktail.data.record import Record
from bge_cocktail.models.embed import embed
from bge_cocktail.models.encoder import load_encoder
from bge_cocktail.models.packing import packer
from bge_cocktail.models.prompts import Prompts
from bge_cocktail.models.tokens import tokenise
from bge_cocktail.options import TrainOptions
from bge_cocktail.search.exact import nearest_by_torch, top_k
from bge_cocktail.training.encoder.batches import Collator
from bge_cocktail.training.encoder.loss import BatchLoss, make_trainer
from bge_cocktail.training.encoder.training_pairs import TrainingPairs
from bge_cocktail.training.engine.trainer import DeviceSetup

WORDS, LENGTHS = 20_000, (20, 250)
NEGATIVES = 7
# multiply-adds of half precision in a second, dense, as NVIDIA's data sheets give them
PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L40": 362, "4090": 165, "3090": 71}


class Check:
    """What is measured, and where.

    Args:
        device: ``cuda``, or ``cpu`` for a try.
        folder: For models and trainings.
        minutes: No part is begun after so many.
    """

    def __init__(self, device: str, folder: Path, minutes: float) -> None:
        self.device, self.folder = device, folder
        self.small = device == "cpu"
        self._ends = time.monotonic() + 60 * minutes
        self.figures: list[dict[str, Any]] = []
        self.batch = 4 if self.small else 64
        self.model = self._made_model()
        generator = np.random.default_rng(0)
        count = self.batch * (2 + NEGATIVES) if self.small else 20_000
        self.texts = list(made_texts(count, generator, LENGTHS if not self.small else (5, 40)))
        self.queries = list(made_texts(count, generator, (4, 20)))

    def _made_model(self) -> Path:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Normalize, Pooling, Transformer
        from transformers import BertConfig, BertModel, BertTokenizerFast

        torch.manual_seed(0)
        plain, made = self.folder / "plain", self.folder / "model"
        plain.mkdir()
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(WORDS))]
        (plain / "vocab.txt").write_text("\n".join(vocabulary))
        config = BertConfig(vocab_size=len(vocabulary), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        if self.small:
            config.update({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4})
            config.intermediate_size = 128
        BertModel(config).save_pretrained(plain)
        BertTokenizerFast(str(plain / "vocab.txt"), model_max_length=256).save_pretrained(plain)
        modules = [Transformer(str(plain), max_seq_length=256), Pooling(config.hidden_size, "mean"), Normalize()]
        SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(made), create_model_card=False)
        return made

    def note(self, name: str, ours: float, peer: float | None = None, target: float | None = None) -> None:
        """Keep and print a figure: with a peer, larger is better and the ratio shall reach the target; else smaller."""
        ratio = None if peer is None else round(ours / peer, 2)
        reached = ours <= target if ratio is None and target is not None else None
        met = None if target is None else reached if ratio is None else ratio >= target
        figure = {"name": name, "ours": float(f"{ours:.4g}"), "peer": peer and float(f"{peer:.4g}")}
        self.figures.append({**figure, "ratio": ratio, "target": target, "met": met})
        print(json.dumps(self.figures[-1]), flush=True)

    def run(self, parts: Sequence[Callable[[Check], None]]) -> None:
        """Run the parts for which there is time; one that fails is a figure that isn't met."""
        for part in parts:
            if time.monotonic() > self._ends:
                print(f"no time left for: {part.__name__}", flush=True)
                continue
            if self.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            try:
                part(self)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"[:500]
                self.figures.append({"name": part.__name__, "error": said, "met": False})
                print(json.dumps(self.figures[-1]), flush=True)
            if self.device == "cuda":
                self.note(f"{part.__name__}: peak memory, GB", torch.cuda.max_memory_allocated() / 1e9)
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def records(self, steps: int) -> list[Record]:
        """Records for so many steps, no text twice in a batch."""
        size = 1 + NEGATIVES
        documents = [self.texts[row % len(self.texts)] for row in range(steps * self.batch * size)]
        return [
            Record(self.queries[row % len(self.queries)], (group[0],), tuple(group[1:]))
            for row, group in enumerate(documents[start : start + size] for start in range(0, len(documents), size))
        ]


def made_texts(count: int, generator: np.random.Generator, lengths: tuple[int, int]) -> Iterator[str]:
    """Yield texts of so many words, most of them short as real ones are."""
    low, high = lengths
    for _ in range(count):
        words = int(np.clip(generator.lognormal(np.log(np.sqrt(low * high)), 0.6), low, high))
        yield " ".join(f"w{word}" for word in generator.integers(0, WORDS, words))


def wall(check: Check, work: Callable[[], object]) -> float:
    """Return the seconds of some work, after one turn that makes things ready."""
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        work()
        if check.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return seconds


def packed_and_padded(check: Check) -> None:
    """Values and gradients of packed batches against padded ones, in fp32 and in bf16, and with dropout."""
    texts = check.texts[:64]
    for precision, near in (("fp32", 1e-5), ("bf16", 0.03)):
        model = load_encoder(check.model, device=check.device)
        tokens = tokenise(model, texts)
        pack = packer(model, "on", precision)
        if tokens is None or pack is None:
            raise RuntimeError("this model can't be packed")
        places = list(range(len(texts)))
        found = []
        for features in (tokens.padded(places), pack(tokens, places)):
            model.zero_grad()
            with torch.autocast(check.device, torch.bfloat16, enabled=precision == "bf16"):
                embeddings = model(moved(check, features))["sentence_embedding"].float()
            weights = torch.arange(embeddings.numel(), device=check.device).view_as(embeddings).cos()
            (embeddings * weights).sum().backward()
            gradients = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
            found.append((embeddings.detach(), gradients))
        (padded, of_padded), (packed, of_packed) = found
        apart = float((padded - packed).abs().max())
        check.note(f"packed and padded, {precision}: embeddings apart", apart, target=near)
        apart = float((of_padded - of_packed).norm() / of_padded.norm())
        check.note(f"packed and padded, {precision}: gradients apart, relative", apart, target=10 * near)
        if precision == "bf16":
            dropped = with_dropout(check, model, pack(tokens, places))
            apart = 1 - float(torch.cosine_similarity(dropped, packed, dim=1).mean())
            check.note("packed with dropout: 1 - mean cosine to none", apart, target=0.3)


def with_dropout(check: Check, model: Any, features: dict[str, Any]) -> torch.Tensor:
    """Return embeddings of a batch with a tenth dropped everywhere, attention's weights too."""
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.1
    model.train()
    with torch.autocast(check.device, torch.bfloat16), torch.no_grad():
        embeddings: torch.Tensor = model(moved(check, features))["sentence_embedding"].float()
    return embeddings


def moved(check: Check, features: Any) -> dict[str, Any]:
    """Return features on the device."""
    return {name: one.to(check.device) if torch.is_tensor(one) else one for name, one in features.items()}


def loss_of(check: Check, precision: str, packed: str, **changes: Any) -> float:
    """Return the loss of one batch, with its backward pass."""
    options = TrainOptions(
        device=check.device, precision=precision, negatives=NEGATIVES, batch_size=check.batch, packed=packed, **changes
    )
    model = load_encoder(check.model, device=check.device)
    model.train()
    rows = TrainingPairs(check.records(1), options)
    pack = packer(model, options.packed, precision)
    batch = Collator(model, rows, options, Prompts(), precision=precision, pack=pack)(
        [(0, row) for row in range(len(rows))]
    )
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with torch.autocast(check.device, kind, enabled=kind is not None):
        chunks = [moved(check, chunk) for chunk in batch["chunks"]]
        loss: torch.Tensor = BatchLoss(model, options)(chunks, moved(check, batch["targets"]))
    loss.backward()
    return float(loss.detach())


def losses(check: Check) -> None:
    """The loss of the same batch in all precisions, against fp32."""
    exact = loss_of(check, "fp32", "off")
    halves = ("bf16",) if check.small else ("bf16", "fp16")
    for precision, near in (*((half, 1e-2) for half in halves), ("fp32", 1e-4)):
        for packed in ("off", "on"):
            apart = abs(loss_of(check, precision, packed) - exact) / exact
            check.note(f"loss, {precision}, packed={packed}: relative difference to fp32", apart, target=near)
    if check.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        apart = abs(loss_of(check, "fp32", "off") - exact) / exact
        check.note("loss, tf32: relative difference to fp32", apart, target=1e-2)
        torch.backends.cuda.matmul.allow_tf32 = False


def ours_tokens(check: Check, steps: int, **changes: Any) -> float:
    """Return the real tokens a second of our trainer, its first quarter left out."""
    from transformers import TrainerCallback

    options = TrainOptions(
        **{
            "device": check.device,
            "precision": "bf16",
            "negatives": NEGATIVES,
            "batch_size": check.batch,
            "epochs": 1,
            "patience": 0,
            **changes,
        }
    )
    model = load_encoder(check.model, device=check.device)
    records = check.records(steps)
    rows = TrainingPairs(records, options)
    at: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if check.device == "cuda":
                torch.cuda.synchronize()
            at.append(time.perf_counter())

    with tempfile.TemporaryDirectory(dir=check.folder) as folder:
        setting = DeviceSetup(check.device, "bf16")
        trainer = make_trainer(model, rows, options, Prompts(), Path(folder), setting, more_callbacks=[Clock()])
        trainer.args.save_strategy = "no"
        trainer.train()
    tokens = real_tokens(model, records)
    skipped = max(1, len(at) // 4)
    # all steps have as many records; which of them, the seed says
    share = (len(at) - skipped) / len(at)
    return share * tokens / (at[-1] - at[skipped - 1])


def real_tokens(model: Any, records: Sequence[Record]) -> int:
    """Return the tokens of all texts, without padding."""
    texts = [text for record in records for text in (record.query, *record.pos, *record.neg)]
    return sum(len(ids) for ids in model.tokenizer(texts, truncation=True, max_length=256)["input_ids"])


def theirs_tokens(check: Check, steps: int) -> float:
    """Return the real tokens a second of sentence-transformers' trainer on the same texts."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    model = SentenceTransformer(str(check.model), device=check.device, local_files_only=True)
    records = check.records(steps)
    columns: dict[str, list[str]] = {"query": [one.query for one in records]}
    columns["positive"] = [one.pos[0] for one in records]
    columns |= {f"negative_{place}": [one.neg[place] for one in records] for place in range(NEGATIVES)}
    at: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if check.device == "cuda":
                torch.cuda.synchronize()
            at.append(time.perf_counter())

    with tempfile.TemporaryDirectory(dir=check.folder) as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=check.batch,
            num_train_epochs=1,
            bf16=True,
            use_cpu=check.small,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=0 if check.small else 4,
        )
        trainer = SentenceTransformerTrainer(
            model, arguments, Dataset.from_dict(columns), loss=MultipleNegativesRankingLoss(model), callbacks=[Clock()]
        )
        trainer.train()
    tokens = real_tokens(model, records)
    skipped = max(1, len(at) // 4)
    return (len(at) - skipped) / len(at) * tokens / (at[-1] - at[skipped - 1])


def trainings(check: Check) -> None:
    """Tokens a second, and the share of the card's peak that they are."""
    steps = 3 if check.small else 40
    theirs = theirs_tokens(check, steps)
    for name, changes in (
        ("packed", {"packed": "on"}),
        ("padded", {"packed": "off"}),
        *(() if check.small else (("compiled", {"packed": "off", "compile": True}),)),
    ):
        ours = ours_tokens(check, steps, **changes)
        check.note(f"train, bf16, {name}: tokens a second", ours, theirs, 2 if name == "packed" else None)
        if check.device == "cuda":
            card = torch.cuda.get_device_name()
            peak = next((tera for name_of, tera in PEAK_TFLOPS.items() if name_of in card), None)
            if peak is not None:
                # forward and backward: 6 for each weight of a layer, 12 for each dimension of what is attended to
                config = load_encoder(check.model, device="cpu")[0].auto_model.config
                weights = 12 * config.num_hidden_layers * config.hidden_size**2
                each = 6 * weights + 12 * config.num_hidden_layers * config.hidden_size * 100
                check.note(f"train, bf16, {name}: percent of {peak} TFLOPS", 100 * ours * each / (peak * 1e12))


def gradient_cache(check: Check) -> None:
    """The same loss in the memory of one chunk."""
    apart = abs(loss_of(check, "bf16", "auto", gradient_cache=True) - loss_of(check, "bf16", "auto"))
    check.note("gradient cache: difference of the loss", apart, target=1e-2)


def embedding(check: Check) -> None:
    """Texts embedded a second."""
    model = load_encoder(check.model, device=check.device)
    model.half() if check.device == "cuda" else None
    theirs = wall(check, lambda: model.encode(check.texts, batch_size=256, show_progress_bar=False))
    model = load_encoder(check.model, device=check.device)
    for packed in ("on", "off"):
        pack = packer(model, packed, "bf16")
        ours = wall(check, partial(embed, model, check.texts, precision="bf16", pack=pack))
        count = len(check.texts)
        check.note(f"embed, packed={packed}: texts a second (theirs in fp16)", count / ours, count / theirs, 1)


def search(check: Check) -> None:
    """Exact search of the nearest 60 on the device, against FAISS on the processor."""
    generator = np.random.default_rng(0)
    counts = (50, 2000) if check.small else (2000, 500_000)
    queries, documents = (generator.standard_normal((count, 384), np.float32) for count in counts)
    import faiss

    started = time.perf_counter()
    values, _ = faiss.knn(queries, documents, 60, metric=faiss.METRIC_INNER_PRODUCT)
    theirs = time.perf_counter() - started
    ours = wall(check, lambda: nearest_by_torch(queries, documents, 60, check.device))
    check.note("search: queries a second against FAISS on the processor", len(queries) / ours, len(queries) / theirs, 1)
    apart = float(np.abs(top_k(queries, documents, 60)[0] - values).max())
    check.note("search: similarities apart", apart, target=1e-3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--out", type=Path, help="a folder for gpu.json")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing was measured", file=sys.stderr)
        print(json.dumps({"name": "gpu", "ours": None, "peer": None, "ratio": None, "target": None, "met": None}))
        return
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        check = Check(arguments.device, Path(folder), arguments.minutes)
        check.run([packed_and_padded, losses, trainings, embedding, search, gradient_cache])
    card = torch.cuda.get_device_name() if arguments.device == "cuda" else "no card"
    made = {"card": card, "torch": torch.__version__, "figures": check.figures}
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "gpu.json").write_text(json.dumps(made, indent=1) + "\n")
    first = next((one for one in check.figures if one.get("ratio") is not None), check.figures[0])
    missed = [one["name"] for one in check.figures if one["met"] is False]
    last = {key: first.get(key) for key in ("ours", "peer", "ratio", "target")}
    print(json.dumps({"name": "gpu", **last, "met": not missed, "missed": missed}))


if __name__ == "__main__":
    main()
