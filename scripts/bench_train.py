"""Training beside FlagEmbedding's and sentence-transformers' trainers: same records, batches, lengths, precision.

    .venv/bin/python scripts/bench_train.py [--quick] [--data DIR] [--only PART] [--device cuda] [--without-peers]

Records of 1 positive and 7 negatives, batches of 16 of mixed lengths, dropout off, constant learning rate, MiniLM on
the CPU: CPU seconds of the training loop (loading left out for all three), and the losses step by step. On a GPU
(`--device cuda`): BERT-base's size with random weights, bf16, batches of 64, texts cut at 32 and 256 tokens, wall
seconds, and the share of the card's peak (`--peak-tflops`) that is spent on real tokens. Texts come from --data (BEIR
folders), or are made of the built-in sentences. FlagEmbedding runs in an environment under .peers/. Then: what
little memory costs, and the start with a million records. Ends with one JSON line. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measuring import CommandFailedError, Figures
from peers import FLAGEMBEDDING_TRAIN, peer_environment

from bge_cocktail.data.beir import read_beir, read_corpus
from bge_cocktail.data.record import Record
from bge_cocktail.data.record_files import read_records, write_records
from bge_cocktail.flow.demo import demo_data, demo_model
from bge_cocktail.models.layout import transformer_folder

TRAINERS = Path(__file__).resolve().parent / "trainers"
NEGATIVES = 7
PEERS = {"sentence-transformers": "sentence_transformers_way.py", "FlagEmbedding": "flagembedding_way.py"}
Run = dict[str, Any]


def real_records(data: Path, count: int, batch: int) -> list[Record]:
    """Queries of MedQuAD and SQuAD with an answer each and other documents; no text twice in a batch."""
    records: list[Record] = []
    corpus: dict[str, None] = {}
    for name in ("medquad", "squad"):
        records += read_records(data / "retrieval" / name)
        corpus.update(dict.fromkeys(read_corpus(data / "retrieval" / name)))
    order = np.random.default_rng(0).permutation(len(records)).tolist()
    return _with_negatives([records[row] for row in order], list(corpus), count, batch)


def made_records(count: int, batch: int) -> list[Record]:
    """The same of the built-in sentences, put together to documents of varied lengths."""
    names = ("handbook", "everyday")
    joined = " ".join(text for name in names for text in read_beir(demo_data() / name).corpus.values())
    sentences = [part.strip() + "." for part in joined.split(".") if part.strip()]
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(1.2, 0.8, 4 * count), 1, 30).astype(int)
    texts = [f"{n}. " + " ".join(generator.choice(sentences, length)) for n, length in enumerate(lengths.tolist())]
    queries = [f"{n} {' '.join(text.split()[1:9])}" for n, text in enumerate(texts[:count])]
    records = [Record(query, (text,)) for query, text in zip(queries, texts[:count], strict=True)]
    return _with_negatives(records, texts, count, batch)


def _with_negatives(records: list[Record], corpus: list[str], count: int, batch: int) -> list[Record]:
    """Random negatives; queries and, in each batch, documents are different, so that no trainer has less to do."""
    generator = np.random.default_rng(1)
    chosen: list[Record] = []
    queries: set[str] = set()
    taken: set[str] = set()
    for record in records:
        if len(chosen) == count:
            break
        if len(chosen) % batch == 0:
            taken = set()
        if record.query in queries or record.pos[0] in taken:
            continue
        drawn = (corpus[row] for row in generator.choice(len(corpus), 4 * NEGATIVES, replace=False))
        negatives = [text for text in drawn if text not in taken and text not in record.pos][:NEGATIVES]
        taken |= {record.pos[0], *negatives}
        queries.add(record.query)
        chosen.append(Record(record.query, (record.pos[0],), tuple(negatives)))
    return chosen


class Bench:
    """One set of records, trained on by each tool.

    Args:
        folder: For settings.
        records: The file.
        steps: How many are trained.
        model: The model to tune.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, folder: Path, records: Path, steps: int, model: Path, device: str) -> None:
        self.folder, self.records, self.steps, self.model, self.device = folder, records, steps, model, device
        self.batch = 64 if device == "cuda" else 16

    def train(self, tool: str, precision: str, **changes: Any) -> Run:
        """One training; CPU and wall seconds, losses, peak memory."""
        options = {
            "batch_size": self.batch,
            "negatives": NEGATIVES,
            "learning_rate": 2e-5,
            "warmup": 0.0,
            "schedule": "constant",
            "weight_decay": 0.01,
            "temperature": 0.05,
            "dropout": 0.0,
            "epochs": 1.0,
            "precision": precision,
            "device": self.device,
            "query_max_length": 32 if self.device == "cuda" else 64,
            "max_length": 256,
            **changes,
        }
        settings = {
            "records": str(self.records),
            "model": str(self.model),
            "plain": str(transformer_folder(self.model)),
            "pooling": "mean",
            "steps": self.steps,
            "options": options,
        }
        path = self.folder / "settings.json"
        path.write_text(json.dumps(settings))
        python = sys.executable
        if tool == "FlagEmbedding":
            python = str(peer_environment("flagembedding-train", FLAGEMBEDDING_TRAIN) / "bin/python")
        script = TRAINERS / PEERS.get(tool, "ours.py")
        done = subprocess.run([python, str(script), str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CommandFailedError(f"{tool} failed:\n{done.stderr[-2000:]}")
        run: Run = json.loads(done.stdout.splitlines()[-1])
        seconds = run["cpu" if self.device == "cpu" else "wall"]
        print(f"{tool} {precision}: {seconds:.1f} s, {len(run['losses'])} steps", file=sys.stderr)
        return {**run, "seconds": 1000 * seconds / (self.steps * options["batch_size"])}


def bench_speed(figures: Figures, bench: Bench, with_peers: bool, tflops: float) -> None:
    """Milliseconds a record, the losses, and memory."""
    unit = "CPU ms a record" if bench.device == "cpu" else "ms a record"
    precisions = ("fp32", "bf16") if bench.device == "cpu" else ("bf16",)
    ours = {precision: bench.train("ours", precision) for precision in precisions}
    what = f"{bench.steps} steps of {bench.batch}"
    for tool in PEERS if with_peers else ():
        theirs = {precision: bench.train(tool, precision) for precision in precisions}
        for precision in precisions:
            one, other = ours[precision], theirs[precision]
            target = {("cpu", "fp32"): 1.9, ("cpu", "bf16"): 1.0, ("cuda", "bf16"): 1.5}[bench.device, precision]
            name = f"{precision}, {unit} against {tool}"
            figures.note(name, one["seconds"], other["seconds"], target, what, least=True)
            name = f"{precision}, peak MB against {tool}"
            figures.note(name, one["peak"], other["peak"], 1, "peak memory", least=True)
        if bench.device == "cpu":
            one, other = ours["bf16"], theirs["fp32"]
            figures.note(f"bf16, {unit} against {tool} in fp32", one["seconds"], other["seconds"], 3, what, least=True)
            pairs = zip(ours["fp32"]["losses"], theirs["fp32"]["losses"], strict=True)
            apart = 1e4 * max(abs(mine - its) for mine, its in pairs)
            figures.note(f"fp32, largest difference of a step's loss to {tool}, in 1e-4", apart, None, 1, "no dropout")
    if bench.device == "cuda":
        # 6 operations for each weight of the layers and each token; attention's own come on top and aren't counted
        spent = 6 * 85e6 * ours["bf16"]["tokens"] / ours["bf16"]["wall"] / 1e12
        figures.note("share of the card's peak spent on real tokens", spent / tflops, None, 0, what, high=True)


def bench_memory(figures: Figures, bench: Bench) -> None:
    """Large batches of long texts with the model's own dropout, in all memory and in little."""
    steps, bench.steps = bench.steps, 2
    usual = {"batch_size": 32, "dropout": None, "temperature": 0.02, "memory": 1000}
    what = "two steps of 32 records, 1 positive and 7 negatives, bf16"
    plain = bench.train("ours", "bf16", **usual)
    figures.note("all memory, peak MB", plain["peak"], None, 0, what, high=True)
    for limit, times in ((2.5, 1.1), (1.5, 1.35)):
        fitted = bench.train("ours", "bf16", **{**usual, "memory": limit})
        figures.note(f"memory={limit}, peak MB", fitted["peak"], None, 1000 * limit, what)
        name = f"memory={limit}, CPU time, times that with all memory"
        figures.note(name, fitted["seconds"] / plain["seconds"], None, times, what)
    bench.steps = steps


def bench_start(figures: Figures, bench: Bench, count: int) -> None:
    """Seconds to the first step, and memory, with many records."""
    few, many = (bench.folder / f"many-{size}.jsonl" for size in (count // 10, count))
    text = "A document of some length, made so that the file is as large as real ones are. " * 4
    for path, size in ((few, count // 10), (many, count)):
        write_records((Record(f"query {n}", (f"{n} {text}",), (f"no {n} {text}",)) for n in range(size)), path)
    runs = []
    for path in (few, many):
        one = Bench(bench.folder, path, 1, bench.model, bench.device)
        runs.append(one.train("ours", "fp32", negatives=1, batch_size=2))
    made = f"a file of {many.stat().st_size / 1e6:.0f} MB"
    figures.note(f"{count} records, seconds to the end of the first step", runs[1]["first"], None, 8, made)
    grown = runs[1]["private"] - runs[0]["private"]
    figures.note(f"{count} records, MB more than with a tenth of them", grown, None, 200, made)


def base_model(folder: Path) -> Path:
    """A model of BERT-base's size with random weights and MiniLM's tokenizer."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    plain, made = folder / "plain", folder / "base"
    BertModel(BertConfig()).save_pretrained(plain)
    AutoTokenizer.from_pretrained(transformer_folder(demo_model())).save_pretrained(plain)
    modules = [Transformer(str(plain), max_seq_length=256), Pooling(768, pooling_mode="mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(made), create_model_card=False)
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, help="a folder with retrieval/{medquad,squad}")
    parser.add_argument("--only", choices=["speed", "memory", "start"], help="one part of it")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peak-tflops", type=float, default=989, help="of the card in bf16; default: an H100's")
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/")
    arguments = parser.parse_args()
    steps = 6 if arguments.quick else 30
    figures = Figures("train")
    with tempfile.TemporaryDirectory(prefix="bench-train-") as scratch:
        folder = Path(scratch)
        model = demo_model() if arguments.device == "cpu" else base_model(folder)
        bench = Bench(folder, folder / "records.jsonl", steps, model, arguments.device)
        count = max(steps * bench.batch, 128)
        data = arguments.data
        records = real_records(data, count, bench.batch) if data else made_records(count, bench.batch)
        write_records(records, bench.records)
        parts = [arguments.only] if arguments.only else ["speed", "memory", "start"]
        if "speed" in parts:
            bench_speed(figures, bench, not arguments.without_peers, arguments.peak_tflops)
        if "memory" in parts:
            bench_memory(figures, bench)
        if "start" in parts:
            bench_start(figures, bench, 100_000 if arguments.quick else 1_000_000)
    figures.finish(write=arguments.write)


if __name__ == "__main__":
    main()
