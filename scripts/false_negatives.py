"""How many mined negatives are in truth relevant, with and without the filters, on judged retrieval sets.

    .venv/bin/python scripts/false_negatives.py --data DIR [--model NAME]

--data holds BEIR folders (retrieval/scifact, retrieval/squad, retrieval/medquad). The miner is given one positive of
each query, the first; all judgements of all splits then tell which of its negatives are relevant. Judgements are never
complete, so every rate is a lower bound. Then queries with several positives: texts of Banking77 and of the built-in
topics with four others of their class, all others of which are relevant too, and MedQuAD's with one of three or more
left out; in which way margins are measured there. Prints two tables, then one JSON line. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from bge_cocktail.data.beir import read_corpus, read_judgements
from bge_cocktail.data.examples import LabelledText
from bge_cocktail.data.record import Record
from bge_cocktail.data.record_files import read_records
from bge_cocktail.data.sources import read_examples
from bge_cocktail.flow.demo import demo_model
from bge_cocktail.mining.candidates import false_negatives
from bge_cocktail.mining.miner import mine
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.options import EncodeOptions, MineOptions
from bge_cocktail.report.text import text_table

ROOT = Path(__file__).resolve().parent.parent
SETS = ("scifact", "squad", "medquad")
OFF: dict[str, object] = {"relative_margin": None, "duplicate_similarity": None}
WAYS: dict[str, dict[str, object]] = {
    "nearest, not even the positive left out": {**OFF, "blind": True},
    "nearest but the known positives": OFF,
    "ranks 11 to 60 (a window)": {**OFF, "skip": 10},
    "similarity at most 0.6": {**OFF, "max_similarity": 0.6},
    "0.1 below the positive": {**OFF, "absolute_margin": 0.1},
    "near-duplicates of positives left out": {"relative_margin": None},
    "relative margin 0.05 (the default)": {},
    "relative margin 0.15": {"relative_margin": 0.15},
    "bm25, relative margin 0.05": {"candidates": ["bm25"]},
}


SEVERAL: dict[str, dict[str, object]] = {
    f"{margin} from the {start}": {"margin_from": start, "relative_margin": margin}
    for start in ("lowest", "mean", "highest")
    for margin in (0.05, 0.1, 0.15)
}
QUERIES, TEXTS, TOLD = 150, 2500, 4


def several_positives(data: Path, encoder: CachedEncoder) -> dict[str, dict[str, float]]:
    """Return for each way of measuring margins how many negatives a query gets, and the share of false ones."""
    tasks = {name: _of_classes(folder) for name, folder in _label_sets(data).items()}
    tasks["medquad"] = _one_left_out(data / "retrieval/medquad")
    found: dict[str, dict[str, float]] = {}
    for way, settings in SEVERAL.items():
        cells = found.setdefault(way, {})
        for name, (records, corpus, relevant) in tasks.items():
            mined = mine(records, encoder, MineOptions(**settings), corpus=corpus).records
            count = sum(len(record.neg) for record in mined)
            wrong = sum(text in relevant[record.query] for record in mined for text in record.neg)
            cells[f"{name}: negatives"] = round(count / len(records), 2)
            cells[f"{name}: false"] = round(wrong / max(count, 1), 4)
    return found


Task = tuple[list[Record], list[str], dict[str, set[str]]]
"""Records, the corpus, and what is relevant to each query."""


def _label_sets(data: Path) -> dict[str, Path]:
    return {"banking77": data / "classification/banking77", "topics": ROOT / "data/topics"}


def _of_classes(folder: Path) -> Task:
    examples = [one for one in read_examples(str(folder), split="train") if isinstance(one, LabelledText)]
    drawn = [examples[row] for row in np.random.default_rng(0).permutation(len(examples))[:TEXTS]]
    classes: dict[str, list[str]] = {}
    for one in drawn:
        classes.setdefault(str(one.label), []).append(one.text)
    records, relevant = [], {}
    for one in drawn[:QUERIES]:
        same = [text for text in classes[str(one.label)] if text != one.text]
        if len(same) > TOLD:
            records.append(Record(one.text, tuple(same[:TOLD])))
            relevant[one.text] = set(same)
    return records, [one.text for one in drawn], relevant


def _one_left_out(folder: Path) -> Task:
    records = [record for record in read_records(folder) if len(record.pos) > 1][:QUERIES]
    told = [Record(record.query, record.pos[: max(2, len(record.pos) - 1)]) for record in records]
    return told, read_corpus(folder), {record.query: set(record.pos) for record in records}


def main() -> None:
    """Mine in each way and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=None, help="default: MiniLM of the extra `demo`")
    arguments = parser.parse_args()
    encoder = CachedEncoder(arguments.model or demo_model(), EncodeOptions(precision="auto"))
    found: dict[str, dict[str, float]] = {}
    rows = []
    for way, settings in WAYS.items():
        options = MineOptions(negatives=7, **{name: value for name, value in settings.items() if name != "blind"})
        cells = [way]
        for name in SETS:
            folder = arguments.data / "retrieval" / name
            corpus = read_corpus(folder)
            records = [Record(record.query, record.pos[:1]) for record in read_records(folder)]
            if settings.get("blind"):  # a positive of nobody: nothing is known
                records = [Record(record.query, ("a text that stands nowhere",)) for record in records]
            mined = mine(records, encoder, options, corpus=corpus)
            wrong = false_negatives(mined.records, read_judgements(folder))
            short = mined.short / len(records)
            found.setdefault(way, {})[name] = wrong.rate
            cells += [f"{wrong.rate:.2%} ({wrong.relevant})", f"{short:.1%}"]
        rows.append(cells)
    header = ["negatives", *(cell for name in SETS for cell in (f"{name}: false", "short"))]
    print(text_table(header, rows))
    several = several_positives(arguments.data, encoder)
    rows = [[way, *map(str, cells.values())] for way, cells in several.items()]
    print(text_table(["several positives", *next(iter(several.values()))], rows))
    found.update(several)
    print(json.dumps({"name": "false_negatives", **found}))


if __name__ == "__main__":
    main()
