"""Ways to train on real data: what each brings on the target and costs on general tasks, with several seeds.

    .venv/bin/python scripts/compare_training.py --data DIR [--sets medquad,squad,banking77] [--records 400] [--write]

Plain (in-batch negatives alone), with mined negatives, with a mask for false negatives, with the base's own
similarities to learn from (distillation; no reranker is at hand), held to the base (anchor), and two of them merged
half and half with the base. Banking77's labels become records first; with "labels alone" the batch's other documents,
which may be of the query's class, are no negatives. Retrieval sets are judged on a draw of 1,000 queries and 2,500
documents, texts are cut at 96 tokens. Prints a Markdown table of nDCG@10 or accuracy on the target and the mean of the
general tasks, mean and standard deviation over the seeds, and one JSON line. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measuring import into_docs

from bge_cocktail.data.beir import read_corpus
from bge_cocktail.data.examples import LabelledText, records_from_labels
from bge_cocktail.data.labelled import DataFolder, read_labelled
from bge_cocktail.data.record import Record
from bge_cocktail.data.record_files import read_records
from bge_cocktail.data.retrieval import read_retrieval, sample_retrieval
from bge_cocktail.evaluating.evaluate import evaluate, open_tasks
from bge_cocktail.evaluating.scores import ModelScores
from bge_cocktail.evaluating.tasks.retrieval import judge
from bge_cocktail.flow.demo import demo_model
from bge_cocktail.merging.merge import merge
from bge_cocktail.mining.miner import mine
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.options import EncodeOptions, EvaluateOptions, MineOptions, TrainOptions
from bge_cocktail.training.encoder.train import train

SEEDS = (1, 2, 3)
NEGATIVES = 3
MAX_LENGTH = 96
# what is judged of a retrieval set: all of it took most of the time
QUERIES, DOCUMENTS = 1000, 2500
# general tasks: other texts, other aims
GENERAL = ("retrieval/xquad_en", "classification/amazon_sentences", "classification/yelp_sentences")
COMMON: dict[str, Any] = {
    "batch_size": 32,
    "epochs": 1,
    "learning_rate": 5e-5,
    "max_length": MAX_LENGTH,
    "evaluations": 1,
    "negatives": NEGATIVES,
}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"negatives": 0},
    "labels alone": {},
    "+ mined negatives": {},
    "+ mined, false negatives masked": {"mask_margin": 0.0},
    "+ mined, distillation": {"loss": ["info-nce", "kl"], "teacher_temperature": 0.05},
    "+ mined, anchor": {"anchor": 1.0},
}
MERGED = ("plain", "+ mined negatives")
Found = dict[str, list[tuple[float, float]]]


class Ways:
    """One set and all ways to train on it.

    Args:
        data: Where the sets are.
        name: A retrieval set, or a set of labelled texts.
        count: Records to train on, a seeded draw.
        folder: For models and embeddings.
    """

    def __init__(self, data: Path, name: str, count: int, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.encoding = EncodeOptions(precision="auto", max_length=MAX_LENGTH, cache_dir=folder / "cache")
        self.labelled = (data / "classification" / name).is_dir()
        path = data / ("classification" if self.labelled else "retrieval") / name
        whole = None if self.labelled else read_retrieval(path, "test")
        # seeded by itself, so that all ways of all seeds are judged on the same
        self.judged = whole and sample_retrieval(whole, queries=QUERIES, documents=DOCUMENTS, seed=0)
        self.tasks = open_tasks([path] if self.labelled else [], [data / one for one in GENERAL])
        self.base = CachedEncoder(demo_model(), self.encoding)
        self.random, known, corpus = _labelled(path) if self.labelled else _retrieval(path)
        order = np.random.default_rng(0).permutation(len(self.random))[:count].tolist()
        self.random = [self.random[row] for row in order]
        plain = [replace(record, neg=(), in_batch_negatives=True) for record in self.random]
        # labels say for certain what is relevant, and one text of a label can be far from another: no margin
        certain = {"relative_margin": None, "duplicate_similarity": None, "depth": 200} if self.labelled else {}
        mining = MineOptions.model_validate({"negatives": NEGATIVES, **certain})
        self.mined = mine(plain, self.base, mining, corpus=corpus, known_positives=known).records

    def records(self, way: str) -> list[Record]:
        """What a way trains on."""
        if way == "labels alone":
            return self.random
        return [_scored(record, self.base) for record in self.mined] if "distillation" in way else self.mined

    def judge(self, model: str | Path) -> tuple[float, float]:
        """Mean main score on the target and on the general tasks."""
        encoder = CachedEncoder(model, self.encoding)
        found = ModelScores("", "", evaluate(encoder, self.tasks, EvaluateOptions()))
        target = found.mean("target")
        if self.judged is not None:
            target = statistics.mean(judge(encoder, self.judged)["nDCG@10"].values())
        return (target or 0.0, found.mean("general") or 0.0)

    def measure(self) -> Found:
        """All ways with all seeds."""
        found: Found = {"base": [self.judge(demo_model())]}
        for way, settings in WAYS.items():
            if way == "labels alone" and not self.labelled:
                continue
            records = self.records(way)
            for seed in SEEDS:
                options = TrainOptions.model_validate({**COMMON, **settings, "seed": seed})
                with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
                    tuned = train(demo_model(), records, Path(scratch) / "tuned", options)
                    self._note(found, way, tuned)
                    if way in MERGED:
                        merged = Path(scratch) / "merged"
                        merge([demo_model(), tuned], merged)
                        self._note(found, f"{way}, merged with the base", merged)
        return found

    def _note(self, found: Found, way: str, model: Path) -> None:
        scores = self.judge(model)
        found.setdefault(way, []).append(scores)
        print(f"{self.name}, {way}: {scores[0]:.4f} {scores[1]:.4f}", file=sys.stderr, flush=True)


def _retrieval(path: Path) -> tuple[list[Record], list[Record], Sequence[str]]:
    records = read_records(path)
    return records, [], list(read_corpus(path))


def _labelled(path: Path) -> tuple[list[Record], list[Record], Sequence[str]]:
    """Records, what is relevant to each query (all texts of its label), and the texts."""
    read = read_labelled(DataFolder(path), "train")
    texts = [text for text in read.texts if isinstance(text, str)]
    examples = [LabelledText(text, label) for text, label in zip(texts, read.class_names(), strict=True)]
    by_label: dict[str, list[str]] = {}
    for one in examples:
        by_label.setdefault(one.label, []).append(one.text)
    known = [Record(one.text, tuple(by_label[one.label])) for one in examples]
    return records_from_labels(examples, negatives=NEGATIVES, seed=0, dropped=Counter()), known, texts


def _scored(record: Record, base: CachedEncoder) -> Record:
    """With the base's similarities as a teacher's scores."""
    documents = base.encode_document([*record.pos, *record.neg])
    scores = (base.encode_query([record.query]) @ documents.T)[0].tolist()
    count = len(record.pos)
    return replace(record, pos_scores=tuple(scores[:count]), neg_scores=tuple(scores[count:]))


def _cell(values: Sequence[float], base: float) -> str:
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.4f}"
    return f"{mean:.4f} ± {statistics.stdev(values):.4f} ({100 * (mean - base):+.1f})"


def markdown(found: dict[str, Found]) -> str:
    """A row for each way, target and general of each set."""
    sides = [(name, side) for name in found for side in ("target", "general")]
    lines = [f"| | {' | '.join(f'{name}, {side}' for name, side in sides)} |", "|---" * (len(sides) + 1) + "|"]
    for way in dict.fromkeys(way for ways in found.values() for way in ways):
        cells = []
        for name, side in sides:
            place = ("target", "general").index(side)
            values = [scores[place] for scores in found[name].get(way, [])]
            cells.append(_cell(values, found[name]["base"][0][place]) if values else "-")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", default="medquad,squad,banking77")
    parser.add_argument("--records", type=int, default=400)
    parser.add_argument("--write", action="store_true", help="put the table into docs/")
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory(prefix="compare-training-") as scratch:
        for name in arguments.sets.split(","):
            found[name] = Ways(arguments.data, name, arguments.records, Path(scratch)).measure()
            print(markdown(found), file=sys.stderr, flush=True)
    if arguments.write:
        into_docs("ways to train", markdown(found))
    print(markdown(found))
    print(json.dumps({"name": "compare_training", **found}))


if __name__ == "__main__":
    main()
