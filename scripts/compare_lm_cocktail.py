"""Losses and weights by LM_Cocktail 0.0.4 and by bge-cocktail on the same CLS-pooled models and examples.

    .venv/bin/python scripts/compare_lm_cocktail.py [--python PATH] [--write]

LM_Cocktail runs in an environment of its own under .peers/, or in that of --python. --write stores its numbers as
tests/goldens/lm_cocktail.json, which tests/merging/test_weights.py holds ours to.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from peers import LM_COCKTAIL, peer_environment
from safetensors.numpy import save_file

from bge_cocktail.data.record import Record
from bge_cocktail.merging.merge import merge
from bge_cocktail.models.layout import declare_pooling
from bge_cocktail.options import MergeOptions

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = ROOT / "tests/goldens/lm_cocktail.json"
WORDS = [
    f"{start}{end}" for start in ("ba", "ke", "li", "mo", "nu", "ra", "se", "to") for end in ("la", "mer", "nis", "t")
]
HIDDEN, INNER, LAYERS, LENGTH = 16, 32, 2, 40
TOLERANCE = 1e-4
THEIRS = """
import json, sys
import torch
from LM_Cocktail.utils import compute_weights, embedder_loss, get_model_param_list, load_model
from LM_Cocktail.utils import preprocess_data_for_embedder
from transformers import AutoTokenizer
models, examples = json.loads(sys.argv[1]), json.loads(sys.argv[2])
model, tokenizer = load_model(models[0], "encoder"), AutoTokenizer.from_pretrained(models[0])
parameters = get_model_param_list(models, model_type="encoder")
data = preprocess_data_for_embedder(examples, tokenizer, "cpu", batch_size=2, max_input_length=2048)
losses = []
for one in parameters:
    model.load_state_dict(one)
    losses.append(embedder_loss(model, data))
weights = compute_weights(model, tokenizer, parameters, "encoder", examples, 5.0, 2, 2048, 7)
print(json.dumps({"losses": losses, "weights": weights}))
"""


def models_of(folder: Path, count: int = 3) -> list[Path]:
    """CLS-pooled encoders of two layers, the same on every machine: a base and models some way from it."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": len(vocabulary),
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": INNER,
        "max_position_embeddings": LENGTH,
        "type_vocab_size": 2,
    }
    models = []
    for seed in range(count):
        path = folder / f"cls{seed}"
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config))
        (path / "vocab.txt").write_text("\n".join(vocabulary))
        tokenizer = {"tokenizer_class": "BertTokenizer", "model_max_length": LENGTH, "do_lower_case": True}
        (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        base, own = np.random.default_rng(0), np.random.default_rng(seed)
        tensors = {}
        for name, shape in _shapes(len(vocabulary)):
            drawn = 0.6 * base.standard_normal(shape) + 0.3 * seed * own.standard_normal(shape)
            tensors[name] = np.asarray(1 + 0.1 * drawn if "LayerNorm.weight" in name else drawn, np.float32)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        declare_pooling(path, "cls")
        models.append(path)
    return models


def examples_of(count: int = 12) -> list[Record]:
    """Examples with seven negatives each, so that LM_Cocktail's unseeded draw takes them all; of other lengths each."""
    generator = np.random.default_rng(7)

    def sentence(least: int, most: int) -> str:
        return " ".join(generator.choice(WORDS, generator.integers(least, most)))

    return [Record(sentence(3, 6), (sentence(5, 15),), tuple(sentence(4, 30) for _ in range(7))) for _ in range(count)]


def by_lm_cocktail(python: str, models: list[Path], examples: list[Record]) -> dict[str, list[float]]:
    """What LM_Cocktail computes."""
    data = [{"query": one.query, "pos": list(one.pos), "neg": list(one.neg)} for one in examples]
    command = [python, "-c", THEIRS, json.dumps([str(path) for path in models]), json.dumps(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"LM_Cocktail failed:\n{done.stderr[-2000:]}")
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", help="the interpreter of an environment that has LM_Cocktail")
    parser.add_argument("--write", action="store_true", help="store LM_Cocktail's numbers as golden")
    arguments = parser.parse_args()
    python = arguments.python or str(peer_environment("lm_cocktail", LM_COCKTAIL) / "bin/python")
    with tempfile.TemporaryDirectory() as scratch:
        models, examples = models_of(Path(scratch)), examples_of()
        theirs = by_lm_cocktail(python, models, examples)
        options = MergeOptions(weights="cocktail", like_lm_cocktail=True)
        ours = merge(models, Path(scratch) / "out", options, examples=examples)
    print("model  loss: LM_Cocktail       ours   weight: LM_Cocktail       ours")
    worst = 0.0
    for row, values in enumerate(zip(theirs["losses"], ours.losses, theirs["weights"], ours.weights, strict=True)):
        print(f"{row:5}  {values[0]:17.6f} {values[1]:10.6f} {values[2]:21.6f} {values[3]:10.6f}")
        worst = max(worst, abs(values[0] - values[1]), abs(values[2] - values[3]))
    if arguments.write:
        GOLDENS.write_text(json.dumps(theirs) + "\n")
    print(json.dumps({"name": "compare LM_Cocktail", "ours": worst, "target": TOLERANCE, "met": worst <= TOLERANCE}))


def _shapes(words: int) -> list[tuple[str, tuple[int, ...]]]:
    rows = [("word", words), ("position", LENGTH), ("token_type", 2)]
    found: list[tuple[str, tuple[int, ...]]] = [
        (f"embeddings.{name}_embeddings.weight", (n, HIDDEN)) for name, n in rows
    ]
    found += [("embeddings.LayerNorm.weight", (HIDDEN,)), ("embeddings.LayerNorm.bias", (HIDDEN,))]
    for layer in range(LAYERS):
        place = f"encoder.layer.{layer}"
        linears = [
            (f"attention.{name}", HIDDEN, HIDDEN) for name in ("self.query", "self.key", "self.value", "output.dense")
        ]
        linears += [("intermediate.dense", INNER, HIDDEN), ("output.dense", HIDDEN, INNER)]
        for name, outputs, inputs in linears:
            found += [(f"{place}.{name}.weight", (outputs, inputs)), (f"{place}.{name}.bias", (outputs,))]
        for name in ("attention.output", "output"):
            found += [(f"{place}.{name}.LayerNorm.weight", (HIDDEN,)), (f"{place}.{name}.LayerNorm.bias", (HIDDEN,))]
    return [*found, ("pooler.dense.weight", (HIDDEN, HIDDEN)), ("pooler.dense.bias", (HIDDEN,))]


if __name__ == "__main__":
    main()
