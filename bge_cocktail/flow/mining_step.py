"""The mining step of a run: negatives for the train records, and for dev records as examples for cocktail weights."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from bge_cocktail.encoding import CachedEncoder
from bge_cocktail.hub import model_folder
from bge_cocktail.mining import mine
from bge_cocktail.options import RunFile
from bge_cocktail.outputs import new_folder, write_json
from bge_cocktail.provenance import RUN_FILE, describe_run, hash_path, step_key
from bge_cocktail.records import Record, write_records
from bge_cocktail.reranker import load_reranker
from bge_cocktail.rundata import RunData

log = logging.getLogger(__name__)


def mining_key(options: RunFile, data: RunData, model: Path) -> str:
    """Names the step by what it does, with what, to what."""
    what: dict[str, Any] = {
        "mine": options.mine.model_dump(mode="json"),
        "encode": options.encode.what_counts(),
        "examples": options.merge.examples,
    }
    return step_key("mine", what, {"base": hash_path(model), "data": data.hash, **_others(options)})


def _others(options: RunFile) -> dict[str, str]:
    """The hashes of further encoders and of the teacher."""
    found = {f"also {name}": hash_path(model_folder(name)) for name in options.mine.also}
    if options.mine.teacher:
        found["teacher"] = hash_path(model_folder(options.mine.teacher))
    return found


def mine_step(options: RunFile, data: RunData, model: str | Path, output: Path) -> None:
    """Mine with a model and write records.jsonl and examples.jsonl.

    Args:
        options: Of the run.
        data: Of the run.
        model: The encoder that ranks the documents: the base, or the model tuned in the round before.
        output: The folder to write.
    """
    started = time.monotonic()
    log.info("mine: %d records", len(data.records))
    encoder = CachedEncoder(model, options.encode)
    also = {name: CachedEncoder(name, options.encode) for name in options.mine.also}
    teacher = load_reranker(options.mine.teacher, device=options.encode.device) if options.mine.teacher else None
    known = [*data.records, *data.dev_records]
    mined = mine(
        data.records, encoder, options.mine, corpus=data.corpus, known_positives=known, also=also, teacher=teacher
    )
    examples: list[Record] = []
    if data.dev_records:
        every = data.dev_records
        drawn = np.random.default_rng(options.mine.seed).permutation(len(every))
        chosen = [every[row] for row in sorted(drawn[: options.merge.examples].tolist())]
        corpus = data.corpus or [text for record in data.records for text in (*record.pos, *record.neg)]
        examples = mine(
            chosen, encoder, options.mine, corpus=corpus, known_positives=known, also=also, teacher=teacher
        ).records
    key = mining_key(options, data, encoder.folder)
    with new_folder(output, overwrite=True) as new:
        write_records(mined.records, new / "records.jsonl")
        write_records(examples, new / "examples.jsonl")
        description = describe_run(
            "mine",
            options={
                "mine": options.mine.model_dump(mode="json"),
                "encode": options.encode.what_counts(),
                "examples": options.merge.examples,
            },
            inputs={str(model): encoder.hash, "data": data.hash, **_others(options)},
            seconds=time.monotonic() - started,
            dropped=mined.dropped,
            records_short_of_negatives=mined.short,
            random_negatives=mined.padded,
            recalls=dict(mined.recalls),
        )
        write_json(new / RUN_FILE, {**description, "key": key})
    dropped = ", ".join(f"{count} {reason}" for reason, count in mined.dropped.items()) or "nothing"
    log.info("mine: dropped %s; %d records short of negatives", dropped, mined.short)
