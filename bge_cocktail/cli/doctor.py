"""``bge-cocktail doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click
from click.exceptions import Exit

from bge_cocktail.cli.flags import PATH, format_flag, overwrite_flag, show

if TYPE_CHECKING:
    from bge_cocktail.serving.doctor import Examination


@click.command("doctor")
@click.argument("model")
@click.option("--data", type=PATH, help="A corpus, a BEIR folder or records: how many texts are cut, or unknown.")
@click.option("--files-only", is_flag=True, help="Look at the files alone; the model isn't loaded.")
@click.option("--fix", "output", type=PATH, help="Write a copy to this folder in which what can be mended is.")
@overwrite_flag
@format_flag
@click.option("--device", default="auto", show_default=True, help="Where to compute: auto, cpu, cuda, cuda:N or mps.")
def command(
    model: str,
    data: Path | None,
    files_only: bool,
    output: Path | None,
    overwrite: bool,
    output_format: str,
    device: str,
) -> None:
    """Look a model over: its faults, and what each reader will make of it.

    Prompts, length, pooling, tokenizer, weights and licence, file by file; then what the model makes of a few texts.
    Ends with exit code 3 if there is a fault: one that gives other embeddings than were trained, or none.
    """
    from bge_cocktail.serving.doctor import examine, fix, texts_of

    if files_only and data is not None:
        raise click.UsageError("--data is embedded, so it doesn't go with --files-only")
    if overwrite and output is None:
        raise click.UsageError("--overwrite goes with --fix")
    texts = texts_of(data) if data is not None else []
    examination = examine(model, data=texts, device=device, load=not files_only)
    if output is None:
        show(examination.to_json(), "\n\n".join(_tables(examination)), output_format)
    else:
        left = fix(model, output, overwrite=overwrite)
        tables = [*_tables(examination), f"The copy {output}:", *_tables(left)]
        show({"before": examination.to_json(), "copy": left.to_json()}, "\n\n".join(tables), output_format)
        examination = left
    if not examination.is_sound:
        raise Exit(3)


def _tables(examination: Examination) -> list[str]:
    from bge_cocktail.report.text import text_table

    tables = []
    profile = examination.profile
    if profile is not None:
        rows = [
            ["architecture", profile.architecture or "static embeddings"],
            ["modules", ", ".join(profile.modules)],
            ["pooling", " + ".join(profile.poolings) or "none"],
            ["dimensions", str(profile.dimensions)],
            ["longest text", f"{profile.max_length} tokens"],
            ["prompt of queries", repr(profile.prompts.query)],
            ["prompt of documents", repr(profile.prompts.document)],
        ]
        if texts := examination.texts:
            rows.append(["your texts", f"{texts['texts']:,}, {texts['cut']:,} cut at {texts['longest']} tokens"])
        tables.append(text_table((examination.model, ""), rows))
        tables.append(text_table(("reader", "what it makes of it"), [list(row) for row in examination.readers.items()]))
    rows = [[one.severity, one.where, f"{one.said}; {one.cure}"] for one in examination.complaints]
    tables.append(text_table(("", "where", "what"), rows) if rows else "No fault was found.")
    return tables
