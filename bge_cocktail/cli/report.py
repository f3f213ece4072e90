"""``bge-cocktail report``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import rich_click as click

from bge_cocktail.cli.flags import PATH, comparing_flags


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option(
    "-o",
    "--output",
    "outputs",
    type=PATH,
    multiple=True,
    required=True,
    help="The file to write: .html, .md, .json, .png, .pdf, or .parquet (the maps, for embedding-atlas). Repeatable.",
)
@click.option("--title", help="Of the page; without it, the names of the runs.")
@comparing_flags
@click.option(
    "--map",
    "reduce",
    type=click.Choice(["pca", "umap"]),
    default="pca",
    show_default=True,
    help="How embeddings come onto a plane; umap is much slower and needs the extra `umap`.",
)
@click.option(
    "--follow",
    type=click.IntRange(1, 3600),
    metavar="SECONDS",
    help="Write anew every so many seconds until no run goes on; an open page reloads itself.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
def command(
    runs: tuple[Path, ...],
    outputs: tuple[Path, ...],
    title: str | None,
    baseline: str | None,
    confidence: float,
    resamples: int,
    seed: int,
    reduce: str,
    follow: int | None,
    overwrite: bool,
) -> None:
    """Show runs on one page: scores, what changed and where, curves, merges, data, and what made each number.

    RUNS are folders that commands wrote (or that hold such: a whole run), also ones that are not finished.
    """
    from bge_cocktail.core.errors import UsageError
    from bge_cocktail.core.outputs import refuse_to_replace_file
    from bge_cocktail.report.build import build_report, check_output, write_report
    from bge_cocktail.report.collect import collect
    from bge_cocktail.report.text import bytes_in_words

    for path in outputs:
        check_output(path)
        refuse_to_replace_file(path, overwrite)
        if path.suffix == ".json" and path.exists() and any(run.resolve() in path.resolve().parents for run in runs):
            raise UsageError(f"{path} belongs to a run that is read; choose another name")
    title = title or f"Report: {', '.join(run.resolve().name for run in runs)}"
    said: list[str] = []
    while True:
        collected = collect(
            runs, baseline=baseline, confidence=confidence, resamples=resamples, seed=seed, reduce=reduce
        )
        going = any(not step.finished for step in collected.steps)
        report = replace(build_report(collected, title), reload=follow if follow and going else 0)
        if report.summary != said:
            click.echo("\n".join(report.summary))
        for path in outputs:
            write_report(report, collected, path)
            if not said:
                click.echo(f"{path}: {bytes_in_words(path.stat().st_size)}", err=True)
        if not (follow and going):
            return
        said = list(report.summary)
        time.sleep(follow)
