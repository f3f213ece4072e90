"""``bge-cocktail indexes``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from bge_cocktail.cli.flags import PATH, flags_from, format_flag, options_from, output_flag, overwrite_flag, show
from bge_cocktail.options import EncodeOptions

_ALL = "exact,int8,int8-rescored,hnsw,ivf,pq,binary"


@click.command("indexes")
@click.argument("model")
@click.argument("data", type=PATH)
@click.option("--index", "names", default=_ALL, show_default=True, help="Which, with commas between.")
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="Documents wanted of each query.")
@click.option("--split", default="test", show_default=True, help="Whose queries are asked.")
@output_flag
@overwrite_flag
@format_flag
@flags_from(EncodeOptions)
def command(
    model: str,
    data: Path,
    names: str,
    k: int,
    split: str,
    output: Path,
    overwrite: bool,
    output_format: str,
    **flags: Any,
) -> None:
    """Judge indexes for a RAG: what each finds of the exact search's documents, its size and its speed.

    DATA is a BEIR folder or what `prepare` wrote; nDCG@10 is that of the documents that each index finds.
    """
    from bge_cocktail.evaluating.evaluate import run_indexes
    from bge_cocktail.report.text import text_table

    chosen = [name.strip() for name in names.split(",")]
    encoding = options_from(EncodeOptions, flags)
    run = run_indexes(model, data, output, chosen, encoding, k=k, split=split, overwrite=overwrite)
    rows = [
        (
            score["index"] + (" *" if score["rescored"] else ""),
            f"{score['recall']:.4f}",
            f"{score[f'nDCG@{k}']:.4f}",
            f"{score['megabytes']:.2f}",
            f"{score['queries_a_second']:.0f}",
            f"{score['build_seconds']:.2f}",
        )
        for score in run.indexes
    ]
    table = text_table(("index", f"recall@{k}", f"nDCG@{k}", "MB", "queries/s", "build s"), rows)
    if any(score["rescored"] for score in run.indexes):
        table += "\n\n* full embeddings order its candidates, and are kept beside it"
    show({"output": str(output), "indexes": run.indexes}, table, output_format, output)
