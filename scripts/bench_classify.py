"""Predicting labels beside transformers' text-classification pipeline, on the same classifier and texts.

    .venv/bin/python scripts/bench_classify.py [--quick] [--data DIR]

A MiniLM with a head, tuned on a few texts, predicts 10,000 short texts (--quick: 2,000): SST-2's of --data
(classification/sst2), or built-in sentences. CPU seconds of both, tokenising too, loading left out; in fp32 the
probabilities are compared, and in bf16 the accuracy. Ends with one JSON line. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Figures

from bge_cocktail.data.beir import read_beir
from bge_cocktail.data.sources import Source
from bge_cocktail.flow.demo import demo_data, demo_model
from bge_cocktail.options import ClassifyOptions, PredictOptions
from bge_cocktail.training.classifier.data import read_class_data
from bge_cocktail.training.classifier.model import load_classifier
from bge_cocktail.training.classifier.predict import predict
from bge_cocktail.training.classifier.train import train_classifier

BATCH = 32


def made_data(folder: Path, count: int) -> Path:
    """Built-in sentences, labelled by the data set that they are from."""
    rows = []
    for name in ("handbook", "everyday"):
        texts = [part.strip() for text in read_beir(demo_data() / name).corpus.values() for part in text.split(".")]
        rows += [{"text": text, "label": name} for text in texts if text]
    generator = np.random.default_rng(0)
    drawn = [rows[row] for row in generator.integers(len(rows), size=count)]
    folder.mkdir()
    for split, part in (("train", drawn), ("test", rows)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def read(path: Path) -> tuple[list[str], list[str]]:
    """Texts and labels of a file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows], [str(row["label"]) for row in rows]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of some work, the less of two, and what it gave."""
    runs = []
    for _ in range(2):
        started = time.process_time()
        found = work()
        runs.append(time.process_time() - started)
    return min(runs), found


def accuracy(found: Sequence[str], labels: Sequence[str]) -> float:
    """Share of right labels, in percent."""
    return 100 * float(np.mean([one == other for one, other in zip(found, labels, strict=True)]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, help="a folder with classification/sst2")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/")
    arguments = parser.parse_args()
    from transformers import pipeline

    count = 2000 if arguments.quick else 10_000
    figures = Figures("classify")
    with tempfile.TemporaryDirectory(prefix="bench-classify-") as scratch:
        folder = Path(scratch)
        data = arguments.data / "classification/sst2" if arguments.data else made_data(folder / "data", count)
        options = ClassifyOptions(epochs=1, max_length=64, learning_rate=1e-4, head="cls", head_start="random")
        few = read_class_data(Source(str(data)), options)
        rows = range(0, len(few.train), max(1, len(few.train) // 1000))
        few = type(few)(few.train.at(rows), few.dev.at(range(200)), None, few.names, few.pairs, few.hash)
        model = train_classifier(demo_model(), few, folder / "classifier", options)
        texts, _ = read(data / "train.jsonl")
        texts = (texts * (1 + count // len(texts)))[:count]
        # as they would come: cleaned, and no two the same, for a text that comes again is predicted once
        texts = [f"{text} {number}" for number, text in enumerate(texts)]
        held, labels = read(data / "test.jsonl")
        classifier = load_classifier(model, device="cpu")
        theirs = pipeline("text-classification", str(model), top_k=None, device="cpu")

        def their_way(some: list[str]) -> list[dict[str, float]]:
            found = theirs(some, batch_size=BATCH, truncation=True)
            return [{one["label"]: one["score"] for one in row} for row in found]

        peer, _ = timed(lambda: their_way(texts))
        what = f"{count} texts"
        for precision, target in (("fp32", 1.0), ("auto", 2.0)):
            chosen = PredictOptions(device="cpu", precision=precision)
            ours, _ = timed(partial(predict, classifier, texts, chosen))
            name = f"{'fp32' if precision == 'fp32' else 'default precision'}, CPU ms a text against the pipeline"
            figures.note(name, 1000 * ours / count, 1000 * peer / count, target, what, least=True)
        plain = their_way(held)
        full = predict(classifier, held, PredictOptions(device="cpu", precision="fp32"))
        apart = [
            max(abs(row[label] - float(value)) for label, value in zip(few.names, one.probabilities, strict=True))
            for row, one in zip(plain, full, strict=True)
        ]
        figures.note("fp32, largest difference of a probability", max(apart), None, 1e-4, f"{len(held)} texts")
        quick = predict(classifier, held, PredictOptions(device="cpu"))
        scores = [
            accuracy([max(row, key=lambda label: row[label]) for row in plain], labels),
            accuracy([one.labels[0] for one in quick], labels),
        ]
        figures.note("default precision, points of accuracy apart", abs(scores[0] - scores[1]), None, 0.2, "test")
    figures.finish(write=arguments.write)


if __name__ == "__main__":
    main()
