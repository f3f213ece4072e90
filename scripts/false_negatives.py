"""How many mined negatives are in truth relevant, with and without the filters, on judged retrieval sets.

    .venv/bin/python scripts/false_negatives.py --data DIR [--model NAME]

--data holds BEIR folders (retrieval/scifact, retrieval/squad, retrieval/medquad). The miner is given one positive of
each query, the first; all judgements of all splits then tell which of its negatives are relevant. Judgements are never
complete, so every rate is a lower bound. Prints a table, then one JSON line. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bge_cocktail.data.beir import read_corpus, read_judgements
from bge_cocktail.data.record import Record
from bge_cocktail.data.record_files import read_records
from bge_cocktail.flow.demo import demo_model
from bge_cocktail.mining.candidates import false_negatives
from bge_cocktail.mining.miner import mine
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.options import EncodeOptions, MineOptions
from bge_cocktail.report.text import text_table

SETS = ("scifact", "squad", "medquad")
OFF: dict[str, object] = {"relative_margin": None, "duplicate_similarity": None}
WAYS: dict[str, dict[str, object]] = {
    "nearest, not even the positive left out": {**OFF, "blind": True},
    "nearest but the known positives": OFF,
    "ranks 11 to 60 (a window)": {**OFF, "skip": 10},
    "similarity at most 0.6": {**OFF, "max_similarity": 0.6},
    "0.1 below the lowest positive": {**OFF, "absolute_margin": 0.1},
    "near-duplicates of positives left out": {"relative_margin": None},
    "relative margin 0.05 (the default)": {},
    "relative margin 0.15": {"relative_margin": 0.15},
    "bm25, relative margin 0.05": {"candidates": ["bm25"]},
}


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
    print(json.dumps({"name": "false_negatives", **found}))


if __name__ == "__main__":
    main()
