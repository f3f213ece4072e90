"""``bge-cocktail indexes``."""

from __future__ import annotations

import time
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
    import numpy as np

    from bge_cocktail.core.outputs import new_folder, refuse_to_replace, write_json
    from bge_cocktail.core.runs import RUN_FILE, describe_run, hash_path
    from bge_cocktail.data.retrieval import read_retrieval
    from bge_cocktail.evaluating.measures import measure_run
    from bge_cocktail.models.encoder import CachedEncoder
    from bge_cocktail.models.folder import model_folder
    from bge_cocktail.report.pictures import draw_indexes
    from bge_cocktail.report.text import text_table
    from bge_cocktail.search.approximate import check_indexes, judge_indexes

    encoding = options_from(EncodeOptions, flags)
    refuse_to_replace(output, overwrite, [model, data])
    started = time.monotonic()
    chosen = [name.strip() for name in names.split(",")]
    judged = read_retrieval(data, split)
    check_indexes(chosen, k, len(judged.corpus))
    encoder = CachedEncoder(model, encoding)
    documents = _unit(encoder.encode_document(list(judged.corpus.values())))
    queries = _unit(encoder.encode_query(list(judged.queries.values())))
    scores, rows = judge_indexes(queries, documents, chosen, k)
    ids, asked = list(judged.corpus), list(judged.queries)
    quality = {}
    for name, found in rows.items():
        run = {query: [ids[row] for row in line if row >= 0] for query, line in zip(asked, found.tolist(), strict=True)}
        quality[name] = float(np.mean(list(measure_run(run, judged.qrels, [f"nDCG@{k}"])[f"nDCG@{k}"].values())))
    described = [{**one.to_json(), f"nDCG@{k}": quality[one.index]} for one in scores]
    with new_folder(output, overwrite=overwrite) as new:
        draw_indexes(scores, new / "indexes.png", k=k, title=f"{len(ids):,} documents of {data.resolve().name}")
        run_of = describe_run(
            "indexes",
            options={"index": chosen, "k": k, "split": split, "encode": encoding.model_dump(mode="json")},
            inputs={model: hash_path(model_folder(model)), str(data): hash_path(data)},
            seconds=time.monotonic() - started,
            indexes=described,
        )
        write_json(new / RUN_FILE, run_of)
    table = [
        (one.index + (" *" if one.rescored else ""), f"{one.recall:.4f}", f"{quality[one.index]:.4f}",
         f"{one.megabytes:.2f}", f"{one.queries_a_second:.0f}", f"{one.build_seconds:.2f}")
        for one in scores
    ]  # fmt: skip
    header = ("index", f"recall@{k}", f"nDCG@{k}", "MB", "queries/s", "build s")
    note = (
        "\n\n* full embeddings order its candidates, and are kept beside it" if any(s.rescored for s in scores) else ""
    )
    show({"output": str(output), "indexes": described}, text_table(header, table) + note, output_format)


def _unit(rows: Any) -> Any:
    import numpy as np

    return np.ascontiguousarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)
