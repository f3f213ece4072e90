"""``bge-cocktail mine``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import rich_click as click

from bge_cocktail.cli.flags import (
    PATH,
    flags_from,
    format_flag,
    options_from,
    output_flag,
    overwrite_flag,
    show,
)
from bge_cocktail.options import Encoding, Mining


@click.command("mine")
@click.argument("data", type=PATH)
@click.option("-m", "--model", required=True, help="Encoder that ranks the documents: a folder or a hub name.")
@click.option("--corpus", type=PATH, help="Documents to mine from: JSON Lines with 'text', or a BEIR folder.")
@click.option("--split", default="train", show_default=True, help="Split of a BEIR folder.")
@output_flag
@overwrite_flag
@format_flag
@flags_from(Mining, Encoding)
def command(
    data: Path,
    model: str,
    corpus: Path | None,
    split: str,
    output: Path,
    overwrite: bool,
    output_format: str,
    **flags: Any,
) -> None:
    """Find hard negatives for records.

    DATA is a file of records (JSON Lines with query and pos) or a BEIR folder, whose corpus is then mined.
    """
    from bge_cocktail.encoding import CachedEncoder
    from bge_cocktail.mining import mine
    from bge_cocktail.provenance import (
        RUN_FILE,
        describe_run,
        hash_path,
        new_folder,
        refuse_to_replace,
        write_json,
    )
    from bge_cocktail.records import read_corpus, read_records, write_records
    from bge_cocktail.records.beir import is_beir
    from bge_cocktail.report.table import text_table

    mining = options_from(Mining, flags)
    encoding = options_from(Encoding, flags)
    refuse_to_replace(output, overwrite, [data, model, *([corpus] if corpus else [])])
    started = time.monotonic()
    records = read_records(data, split=split)
    source = corpus or (data if is_beir(data) else None)
    encoder = CachedEncoder(model, encoding)
    mined = mine(records, encoder, mining, corpus=read_corpus(source) if source else None)
    summary = {
        "records": len(mined.records),
        "negatives": sum(len(record.neg) for record in mined.records),
        "records_short_of_negatives": mined.short,
        "texts_embedded": encoder.embedded,
        "dropped": mined.dropped,
    }
    with new_folder(output, overwrite=overwrite) as new:
        write_records(mined.records, new / "records.jsonl")
        inputs = {model: encoder.hash, str(data): hash_path(data)}
        if corpus:
            inputs[str(corpus)] = hash_path(corpus)
        options = {
            "mine": mining.model_dump(mode="json"),
            "encode": encoding.model_dump(mode="json"),
            "split": split,
        }
        seconds = time.monotonic() - started
        write_json(new / RUN_FILE, describe_run("mine", options=options, inputs=inputs, seconds=seconds, **summary))
    rows = [(name.replace("_", " "), str(value)) for name, value in summary.items() if name != "dropped"]
    rows += [(f"dropped: {reason}", str(count)) for reason, count in mined.dropped.items()]
    show({"output": str(output), **summary}, text_table(("mined", "count"), rows), output_format)
