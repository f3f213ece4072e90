"""CPU seconds and peak memory of merges, beside mergekit, LM_Cocktail and sentence-transformers in the same run.

    .venv/bin/python scripts/bench_merge.py [--quick] [--folder DIR] [--without-peers]

Makes models of BERT-large's shapes (4 × 1.34 GB, random numbers; --quick: BERT-base's, 4 × 0.44 GB) in --folder (a
temporary one otherwise) and environments for the peers under .peers/. Every figure is user + system time of a whole
command, start-up too, the least of the repeats, after one command that warms the page cache. The floor is reading all
inputs (`cat`) plus writing one (`cp`). Prints a table, then one JSON line for each figure: name, ours, peer, ratio,
target, met; the last line sums up. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measuring import CommandFailedError, Figures, Measured, measure
from peers import LM_COCKTAIL, MERGEKIT, SENTENCE_TRANSFORMERS_MERGE, peer_environment

from bge_cocktail.flow.demo import demo_model
from bge_cocktail.merging.tensors import header_bytes

SIZES = {"large": (24, 1024, 4096), "base": (12, 768, 3072)}
MIX = """
import json, sys
from LM_Cocktail import mix_models
models, output = json.loads(sys.argv[1]), sys.argv[2]
mix_models(models, "encoder", [1 / len(models)] * len(models), output)
"""
MERGE = """
import json, sys
from sentence_transformers import SentenceTransformer
models, output = json.loads(sys.argv[1]), sys.argv[2]
SentenceTransformer.merge(models).save_pretrained(output, create_model_card=False)
"""
WEIGH = """
import json, sys
import torch
from LM_Cocktail.utils import compute_weights, get_model_param_list, load_model
from transformers import AutoTokenizer
models, examples, batch = json.loads(sys.argv[1]), json.load(open(sys.argv[2])), int(sys.argv[3])
model, tokenizer = load_model(models[0], "encoder"), AutoTokenizer.from_pretrained(models[0])
parameters = get_model_param_list(models, model_type="encoder")
print(compute_weights(model, tokenizer, parameters, "encoder", examples, 5.0, batch, 512, 7))
"""


def bert_shapes(layers: int, hidden: int, inner: int) -> list[tuple[str, tuple[int, ...]]]:
    """The tensors of a BERT classifier by name."""
    found: list[tuple[str, tuple[int, ...]]] = []

    def linear(name: str, outputs: int, inputs: int) -> None:
        found.extend([(f"{name}.weight", (outputs, inputs)), (f"{name}.bias", (outputs,))])

    def norm(name: str) -> None:
        found.extend([(f"{name}.weight", (hidden,)), (f"{name}.bias", (hidden,))])

    for name, rows in (("word", 30522), ("position", 512), ("token_type", 2)):
        found.append((f"bert.embeddings.{name}_embeddings.weight", (rows, hidden)))
    norm("bert.embeddings.LayerNorm")
    for layer in range(layers):
        place = f"bert.encoder.layer.{layer}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{place}.attention.{name}", hidden, hidden)
        norm(f"{place}.attention.output.LayerNorm")
        linear(f"{place}.intermediate.dense", inner, hidden)
        linear(f"{place}.output.dense", hidden, inner)
        norm(f"{place}.output.LayerNorm")
    linear("bert.pooler.dense", hidden, hidden)
    linear("classifier", 2, hidden)
    return found


def make_model(folder: Path, size: str, seed: int) -> Path:
    """A model near the one of seed 0, with MiniLM's tokenizer, which is BERT's."""
    layers, hidden, inner = SIZES[size]
    shapes = bert_shapes(layers, hidden, inner)
    wanted = sum(int(np.prod(shape)) for _, shape in shapes) * 4
    file = folder / "model.safetensors"
    if file.is_file() and file.stat().st_size > wanted:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "intermediate_size": inner,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for path in demo_model().glob("*token*.json"):
        shutil.copyfile(path, folder / path.name)
    shutil.copyfile(demo_model() / "vocab.txt", folder / "vocab.txt")
    same, own = np.random.default_rng(0), np.random.default_rng(seed)
    with open(file, "wb") as stream:
        stream.write(header_bytes([(name, "F32", shape) for name, shape in shapes]))
        for _, shape in shapes:
            values = 0.03 * same.standard_normal(shape, np.float32)
            if seed:
                values += 0.002 * own.standard_normal(shape, np.float32)
            stream.write(values.tobytes())
    return folder


def make_minilm(folder: Path, seed: int) -> Path:
    """A copy of MiniLM moved a little."""
    from safetensors.numpy import load_file, save_file

    if not (folder / "model.safetensors").is_file():
        shutil.copytree(demo_model(), folder)
        own = np.random.default_rng(seed)
        tensors = {
            name: (value + 0.002 * own.standard_normal(value.shape)).astype(np.float32)
            if value.dtype.kind == "f"
            else value
            for name, value in load_file(folder / "model.safetensors").items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class Bench:
    """The models, the peers, and what was measured."""

    def __init__(self, folder: Path, repeats: int, with_peers: bool) -> None:
        self.folder, self.repeats = folder, repeats
        self.figures = Figures("merge")
        self.note = self.figures.note
        self.mergekit = self.lm_cocktail = self.sentence_transformers = None
        if with_peers:
            merge = peer_environment("sentence-transformers-merge", SENTENCE_TRANSFORMERS_MERGE)
            self.sentence_transformers = str(merge / "bin/python")
            self.mergekit = str(peer_environment("mergekit", MERGEKIT) / "bin/mergekit-yaml")
            self.lm_cocktail = str(peer_environment("lm_cocktail", LM_COCKTAIL) / "bin/python")

    def ours(self, models: list[Path], *options: str, repeats: int = 1) -> Measured:
        """Our command."""
        output = self.folder / "ours"
        command = [str(Path(sys.executable).parent / "bge-cocktail"), "merge", *map(str, models), *options]
        return measure([*command, "-o", str(output)], output, repeats)

    def by_mergekit(self, recipe: dict[str, Any]) -> Measured | None:
        """mergekit on its own form of the same recipe."""
        if self.mergekit is None:
            return None
        path, output = self.folder / "recipe.yml", self.folder / "theirs"
        path.write_text(json.dumps({"dtype": "float32", **recipe}))
        command = [self.mergekit, str(path), str(output), "--no-copy-tokenizer", "--allow-crimes"]
        try:
            return measure(command, output, 1)
        except CommandFailedError as error:
            print(error, file=sys.stderr)
            return None

    def by_lm_cocktail(self, models: list[Path]) -> Measured | None:
        """LM_Cocktail's mix_models, imports and all."""
        return self._by_python(self.lm_cocktail, MIX, models)

    def by_sentence_transformers(self, models: list[Path]) -> Measured | None:
        """SentenceTransformer.merge, imports and all."""
        return self._by_python(self.sentence_transformers, MERGE, models)

    def _by_python(self, python: str | None, code: str, models: list[Path]) -> Measured | None:
        if python is None:
            return None
        output = self.folder / "theirs"
        return measure([python, "-c", code, json.dumps([str(path) for path in models]), str(output)], output, 1)

    def floor(self, models: list[Path]) -> float:
        """Reading all weights and writing one of them."""
        files = [str(path / "model.safetensors") for path in models]
        copy = self.folder / "copy"
        read = measure(["sh", "-c", 'cat "$@" > /dev/null', "sh", *files], None, 1)[0]
        write = measure(["cp", files[0], str(copy)], copy, 1)[0]
        copy.unlink(missing_ok=True)
        return read + write


def entries(models: list[Path], weight: float | None = None) -> list[dict[str, Any]]:
    """Models in mergekit's form."""
    more = {} if weight is None else {"parameters": {"weight": weight}}
    return [{"model": str(path), **more} for path in models]


def bench_methods(bench: Bench, models: list[Path], size: str) -> None:
    """The methods on four models of one size."""
    four, label = models, f"4 BERT-{size}"
    # in turns, because what writing costs depends on the state of the machine's memory
    rounds = [(bench.floor(four), bench.ours(four)) for _ in range(bench.repeats)]
    floor = min(cost for cost, _ in rounds)
    linear = min(cpu for _, (cpu, _) in rounds), max(peak for _, (_, peak) in rounds)
    if size == "large":  # of smaller models, starting up is most of the time
        what = f"ours {linear[0]:.2f} s, floor {floor:.2f} s"
        bench.note(f"linear {label}, times the floor", linear[0] / floor, None, 1.5, what)
    bench.note(f"linear {label}, peak MB", linear[1], None, 150, "peak memory")
    peers = {
        "mergekit": bench.by_mergekit({"merge_method": "linear", "models": entries(four, 0.25)}),
        "LM_Cocktail": bench.by_lm_cocktail(four),
    }
    for peer, found in peers.items():
        cpu, peak = found or (None, None)
        bench.note(f"linear {label}, CPU s against {peer}", linear[0], cpu, 8, "CPU seconds", least=True)
        bench.note(f"linear {label}, MB against {peer}", linear[1], peak, 30, "peak memory", least=True)
    base, tuned = str(four[0]), four[1:]
    for method, target in (("model-stock", 2.5), ("slerp", 2.5)):
        chosen = four[:2] if method == "slerp" else tuned
        reference = bench.ours(chosen) if method == "slerp" else linear
        ours = bench.ours(chosen, "--method", method, *(["--base", base] if method == "model-stock" else []))
        what = f"times linear on as many models ({reference[0]:.2f} s)"
        bench.note(f"{method}, times linear", ours[0] / reference[0], None, target, what)
        recipe: dict[str, Any] = {
            "merge_method": method.replace("-", "_"),
            "base_model": base,
            "models": entries(chosen),
        }
        if method == "slerp":
            recipe["parameters"] = {"t": 0.5}
        cpu = (bench.by_mergekit(recipe) or (None, None))[0]
        bench.note(f"{method}, CPU s against mergekit", ours[0], cpu, 1, "CPU seconds", least=True)
    for method in ("ties", "dare_linear"):
        ours = bench.ours(tuned, "--method", method.replace("_", "-"), "--base", base, "--density", "0.2")
        recipe = {
            "merge_method": method,
            "base_model": base,
            "models": entries(tuned, 1.0),
            "parameters": {"density": 0.2},
        }
        cpu = (bench.by_mergekit(recipe) or (None, None))[0]
        bench.note(f"{method}, CPU s against mergekit", ours[0], cpu, 2, "CPU seconds", least=True)
        bench.note(f"{method}, peak MB", ours[1], None, 300, "peak memory")


def bench_minilm(bench: Bench) -> None:
    """Ten small models, where starting counts."""
    models = [make_minilm(bench.folder / f"minilm{seed}", seed) for seed in range(10)]
    ours = bench.ours(models, repeats=bench.repeats)
    bench.note("linear 10 MiniLM, CPU s", ours[0], None, 1.2, "CPU seconds of the whole command")
    plain = [{"model": str(path), "parameters": {"weight": 0.1}} for path in models]
    cpu = (bench.by_mergekit({"merge_method": "linear", "models": plain}) or (None, None))[0]
    bench.note("linear 10 MiniLM, CPU s against mergekit", ours[0], cpu, 1, "CPU seconds", least=True)
    cpu = (bench.by_lm_cocktail(models) or (None, None))[0]
    bench.note("linear 10 MiniLM, CPU s against LM_Cocktail", ours[0], cpu, 1, "CPU seconds", least=True)
    ours, theirs = bench.ours(models[:4], repeats=bench.repeats), bench.by_sentence_transformers(models[:4])
    cpu, peak = theirs or (None, None)
    bench.note("linear 4 MiniLM, CPU s against sentence-transformers", ours[0], cpu, 10, "CPU seconds", least=True)
    bench.note("linear 4 MiniLM, peak MB against sentence-transformers", ours[1], peak, 15, "peak memory", least=True)


def bench_weights(bench: Bench, quick: bool) -> None:
    """Cocktail weights from the loss on examples; ours in the same arithmetic (fp32), nothing from a cache."""
    count, wanted, batches = (3, 20, (2,)) if quick else (10, 100, (2, 8, 32))
    models = [make_minilm(bench.folder / f"minilm{seed}", seed) for seed in range(count)]
    records = make_examples(wanted)
    examples, plain = bench.folder / "examples.jsonl", bench.folder / "examples.json"
    examples.write_text("".join(json.dumps(record) + "\n" for record in records))
    plain.write_text(json.dumps(records))
    label = f"weights of {count} MiniLM on {wanted} examples"
    options = ["--weights", "cocktail", "--examples", str(examples), "--no-cache"]
    ours = bench.ours(models, *options)[0]
    by_auto = bench.ours(models, *options, "--precision", "auto")[0]
    peers: dict[int, float] = {}
    for batch in batches if bench.lm_cocktail else ():
        command = [
            str(bench.lm_cocktail),
            "-c",
            WEIGH,
            json.dumps([str(path) for path in models]),
            str(plain),
            str(batch),
        ]
        peers[batch] = measure(command, None, 1)[0]
        what = f"CPU seconds; LM_Cocktail at batch {batch}, both fp32"
        bench.note(f"{label}, against LM_Cocktail at batch {batch}", ours, peers[batch], 2, what, least=True)
    best = min(peers.values(), default=None)
    bench.note(f"{label}, --precision auto", by_auto, best, 2, "CPU seconds; LM_Cocktail at its best batch", least=True)


def make_examples(count: int) -> list[dict[str, Any]]:
    """Questions of the built-in handbook, each with its document and seven others of it."""
    from bge_cocktail.data.record_files import read_records
    from bge_cocktail.flow.demo import demo_data

    records = read_records(demo_data() / "handbook")
    documents = list(dict.fromkeys(text for record in records for text in record.pos))
    generator = np.random.default_rng(0)
    drawn = []
    for record in records[:count]:
        others = [text for text in documents if text not in record.pos]
        chosen = [others[row] for row in generator.permutation(len(others))[:7]]
        drawn.append({"query": record.query, "pos": list(record.pos), "neg": chosen})
    return drawn


def bench_many(bench: Bench, models: list[Path], size: str) -> None:
    """Twenty models (five times the four): memory stays."""
    many = [path for path in models for _ in range(5)]
    ours = bench.ours(many)
    bench.note(f"linear 20 BERT-{size}, peak MB", ours[1], None, 150, "peak memory")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="models of BERT-base's size, one repeat")
    parser.add_argument("--folder", type=Path, help="where models are made, and kept")
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/")
    parser.add_argument("--only", choices=["methods", "many", "minilm", "weights"], help="one part of it")
    arguments = parser.parse_args()
    size = "base" if arguments.quick else "large"
    with tempfile.TemporaryDirectory(prefix="bench-merge-") as scratch:
        folder = (arguments.folder or Path(scratch)).resolve()
        bench = Bench(folder, 2 if arguments.quick else 3, not arguments.without_peers)
        parts = [arguments.only] if arguments.only else ["methods", "many", "minilm", "weights"]
        models = []
        if {"methods", "many"} & set(parts):
            models = [make_model(folder / f"{size}{seed}", size, seed) for seed in range(4)]
            bench.floor(models)  # the first reading fills the page cache
        if "methods" in parts:
            bench_methods(bench, models, size)
        if "many" in parts:
            bench_many(bench, models, size)
        if "minilm" in parts:
            bench_minilm(bench)
        if "weights" in parts:
            bench_weights(bench, arguments.quick)
    bench.figures.finish(write=arguments.write)


if __name__ == "__main__":
    main()
