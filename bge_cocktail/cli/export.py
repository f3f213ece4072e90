"""``bge-cocktail export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from bge_cocktail.cli.flags import PATH, flags_from, format_flag, options_from, output_flag, overwrite_flag, show
from bge_cocktail.options import ExportOptions


@click.command("export")
@click.argument("model")
@output_flag
@click.option(
    "--target",
    multiple=True,
    metavar="[KIND:]FOLDER",
    help="A task that the export is judged on before it is written. Repeatable.",
)
@click.option(
    "--data", type=PATH, help="Texts that int8 is calibrated on, or layers are distilled on: a corpus, records."
)
@click.option(
    "--judge/--no-judge", default=True, show_default=True, help="Compare it with the model before it is written."
)
@overwrite_flag
@format_flag
@flags_from(ExportOptions)
def command(
    model: str,
    output: Path,
    target: tuple[str, ...],
    data: Path | None,
    judge: bool,
    overwrite: bool,
    output_format: str,
    **flags: Any,
) -> None:
    """Write a model in the form of another program: ONNX, OpenVINO, GGUF, int8, and judge it first.

    One graph holds pooling, Dense, fewer dimensions and unit norm; the tokenizer lies beside it. Cosines, neighbours,
    scores with the interval of their change, size and speed are shown; beyond --max-loss nothing is written and the
    exit code is 3. What is written is served by bge-cocktail serve.
    """
    from bge_cocktail.report.text import text_table
    from bge_cocktail.serving.doctor import texts_of
    from bge_cocktail.serving.export import export

    texts = texts_of(data) if data is not None else []
    options = options_from(ExportOptions, flags)
    report = export(model, output, options, target=target, texts=texts, judge=judge, overwrite=overwrite)
    if report is None:
        show({"output": str(output), "judged": None}, "not judged", output_format, output)
        return
    rows = [[name, f"{one:,.1f}", f"{two:,.1f}", ""] for name, (one, two) in _pairs(report)]
    for change in report["scores"]:
        interval = change["interval"]
        said = f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval is not None else f"{change['difference']:+.4f}"
        name = f"{change['task']}, {change['metric']}"
        rows.append([name, f"{change['before']:.4f}", f"{change['after']:.4f}", said])
    if report["cosine"] is not None:
        rows.append(["cosine, mean and least", "", f"{report['cosine']:.5f}", f"{report['least_cosine']:.5f}"])
    rows.append(["first ten neighbours kept", "", f"{report['first_ten']:.1%}", ""])
    then = () if options.to == "gguf" else ("serve", output)
    show(dict(report), text_table(("", "model", report["to"], "change"), rows), output_format, output, then)


def _pairs(report: Any) -> list[tuple[str, tuple[float, float]]]:
    return [("MB", report["megabytes"]), ("texts a second of processor time", report["texts_per_second"])]
