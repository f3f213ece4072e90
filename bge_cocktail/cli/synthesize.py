"""``bge-cocktail synthesize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bge_cocktail.cli.command_kinds import ShortHelp
from bge_cocktail.cli.flags import PATH, flags_from, format_flag, options_from, output_flag, overwrite_flag, show
from bge_cocktail.options import EncodeOptions, SynthesizeOptions

if TYPE_CHECKING:
    from bge_cocktail.synthesizing.synthesize import Synthesis


@click.command("synthesize", cls=ShortHelp)
@click.argument("corpus", type=PATH)
@click.option("-m", "--model", required=True, help="The encoder to be tuned, which finds passages again.")
@output_flag
@overwrite_flag
@format_flag
@flags_from(SynthesizeOptions, EncodeOptions)
def command(corpus: Path, model: str, output: Path, overwrite: bool, output_format: str, **flags: Any) -> None:
    """Make queries, records and a task from documents alone.

    CORPUS is a BEIR folder, a file (JSON Lines, CSV, TSV, Parquet) with `text` (and perhaps `_id` and `title`), or a
    folder of .txt and .md files. No model writes: titles, headings, definitions, questions, key words and sentences
    are taken from the documents; what the encoder and BM25 together don't find again is left out.
    """
    from bge_cocktail.synthesizing.synthesize import synthesize

    made = synthesize(
        corpus,
        model,
        output,
        options_from(SynthesizeOptions, flags),
        options_from(EncodeOptions, flags),
        overwrite=overwrite,
    )
    then = ("mine", output, "-m", model, "-o", "FOLDER")
    show({"output": str(output), **made.to_json()}, _tables(made), output_format, output, then)


def _tables(made: Synthesis) -> str:
    """What became of the documents, and of each writer's queries."""
    from bge_cocktail.report.text import text_table

    documents = text_table(("corpus", "count"), [(name, str(count)) for name, count in made.documents.items() if count])
    filters = [name for name, counts in made.left_out.items() if any(counts.values())]
    header = ("writer", "written", *(f"- {name}" for name in filters), *made.kept)
    names = [*made.written, *({name for counts in made.kept.values() for name in counts} - set(made.written))]
    rows = [
        [
            name,
            str(made.written.get(name, 0)),
            *(str(made.left_out[filter_name].get(name, 0)) for filter_name in filters),
            *(str(counts.get(name, 0)) for counts in made.kept.values()),
        ]
        for name in names
    ]
    return f"{documents}\n\n{text_table(header, rows)}"
