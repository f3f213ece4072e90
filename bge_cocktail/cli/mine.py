"""``bge-cocktail mine``."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import rich_click as click

from bge_cocktail.cli.flags import PATH, flags_from, format_flag, options_from, output_flag, overwrite_flag, show
from bge_cocktail.options import EncodeOptions, MineOptions

AUDIT_FILE = "audit.json"
log = logging.getLogger(__name__)


@click.command("mine")
@click.argument("data", type=PATH)
@click.option("-m", "--model", required=True, help="Encoder that ranks the documents: a folder or a hub name.")
@click.option("--corpus", type=PATH, help="Documents to mine from: JSON Lines with 'text', or a BEIR folder.")
@click.option("--split", default="train", show_default=True, help="Split of a folder.")
@click.option(
    "--qrels", type=PATH, multiple=True, help="A BEIR folder whose judgements tell false negatives. Repeatable."
)
@click.option("--audit", type=click.IntRange(min=0), default=0, help="Show the decisions for so many queries.")
@output_flag
@overwrite_flag
@format_flag
@flags_from(MineOptions, EncodeOptions)
def command(
    data: Path,
    model: str,
    corpus: Path | None,
    split: str,
    qrels: tuple[Path, ...],
    audit: int,
    output: Path,
    overwrite: bool,
    output_format: str,
    **flags: Any,
) -> None:
    """Find hard negatives for records.

    DATA is a file of records (JSON Lines with query and pos), a folder that `prepare` wrote, or a BEIR folder; the
    corpus of a folder is then mined.
    """
    from bge_cocktail.core.outputs import new_folder, refuse_to_replace, write_json
    from bge_cocktail.core.runs import RUN_FILE, describe_run, hash_path
    from bge_cocktail.data.beir import corpus_of, is_beir, read_corpus, read_judgements
    from bge_cocktail.data.record_files import read_records, write_records
    from bge_cocktail.mining.candidates import false_negatives
    from bge_cocktail.mining.miner import mine
    from bge_cocktail.models.encoder import CachedEncoder
    from bge_cocktail.models.folder import model_folder, sentence_transformers_folder
    from bge_cocktail.models.reranker import load_reranker
    from bge_cocktail.report.text import audit_text, text_table

    mining = options_from(MineOptions, flags)
    encoding = options_from(EncodeOptions, flags)
    teacher = [mining.teacher] if mining.teacher else []
    refuse_to_replace(output, overwrite, [data, model, *([corpus] if corpus else []), *mining.also, *teacher, *qrels])
    for name in mining.also:
        sentence_transformers_folder(name)
    judged = qrels or ((data,) if audit and is_beir(data) else ())
    judgements = [one for path in judged for one in read_judgements(path)]
    started = time.monotonic()
    records = read_records(data, split=split)
    source = corpus or corpus_of(data)
    encoder = CachedEncoder(model, encoding)
    also = {name: CachedEncoder(name, encoding) for name in mining.also}
    mined = mine(
        records,
        encoder,
        mining,
        corpus=read_corpus(source) if source else None,
        also=also,
        teacher=load_reranker(mining.teacher, device=encoding.device) if mining.teacher else None,
        audit=audit,
    )
    if not any(record.neg for record in mined.records):
        log.warning("no record got a negative; what was dropped, and the limits of ranks and similarity, tell why")
    wrong = false_negatives(mined.records, judgements)
    summary = {
        "records": len(mined.records),
        "negatives": sum(len(record.neg) for record in mined.records),
        "records_short_of_negatives": mined.short,
        **({"random_negatives": mined.padded} if mining.pad else {}),
        **(
            {f"recall_of_{name}": round(recall, 4) for name, recall in mined.recalls.items()}
            if mining.index != "exact"
            else {}
        ),
        **({"judged_negatives": wrong.negatives, "judged_relevant": wrong.relevant} if judged else {}),
        "texts_embedded": encoder.embedded + sum(one.embedded for one in also.values()),
        "dropped": mined.dropped,
    }
    with new_folder(output, overwrite=overwrite) as new:
        write_records(mined.records, new / "records.jsonl")
        if audit:
            write_json(new / AUDIT_FILE, [one.to_json() for one in mined.audits])
        inputs = {model: encoder.hash, str(data): hash_path(data)}
        inputs |= {name: one.hash for name, one in also.items()} | {str(path): hash_path(path) for path in qrels}
        if mining.teacher:
            inputs[mining.teacher] = hash_path(model_folder(mining.teacher))
        if corpus:
            inputs[str(corpus)] = hash_path(corpus)
        options = {
            "mine": mining.model_dump(mode="json"),
            "encode": encoding.model_dump(mode="json"),
            "split": split,
            "audit": audit,
        }
        seconds = time.monotonic() - started
        write_json(new / RUN_FILE, describe_run("mine", options=options, inputs=inputs, seconds=seconds, **summary))
    rows = [(name.replace("_", " "), str(value)) for name, value in summary.items() if name != "dropped"]
    rows += [(f"dropped: {reason}", str(count)) for reason, count in mined.dropped.items()]
    tables = [text_table(("mined", "count"), rows), *map(audit_text, mined.audits)]
    if judged:
        share = f"{wrong.relevant} of {wrong.negatives} negatives are judged relevant: {wrong.rate:.2%}"
        tables.append(f"{share} (judgements are never complete: at least so many are false)")
    shown = {"output": str(output), **summary, "audit": [one.to_json() for one in mined.audits]}
    show(shown, "\n\n".join(tables), output_format)
