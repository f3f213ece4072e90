"""From runs to a report, and from a report to files: HTML, Markdown, JSON, pictures, maps."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import UsageError, nearest
from bge_cocktail.core.outputs import as_written, new_file
from bge_cocktail.core.version import __version__
from bge_cocktail.report.blocks import (
    Block,
    Cell,
    Code,
    Plot,
    Queries,
    Report,
    Section,
    Table,
    Words,
    finite,
    report_sections,
)
from bge_cocktail.report.collect import ReportInput
from bge_cocktail.report.sections.data import data_tables, flow_of
from bge_cocktail.report.sections.maps import planes


def html_page(report: Report) -> str:
    """Return the page: no network, light and dark, for desktops and phones."""
    from jinja2 import Environment
    from markupsafe import Markup

    here = files("bge_cocktail.report") / "page"
    blocks: list[Any] = []

    def place(block: Plot | Queries) -> int:
        """Keep what the page's script draws, and give its place."""
        blocks.append(_for_script(block))
        return len(blocks) - 1

    def data() -> Any:
        """Return all that was placed; asked for after the body."""
        return Markup(_inside_script(json.dumps(finite(blocks), ensure_ascii=False, separators=(",", ":"))))

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (here / "page.html").read_text(encoding="utf-8")
    )
    return template.render(
        report=report,
        place=place,
        data=data,
        css=Markup((here / "page.css").read_text(encoding="utf-8")),
        script=Markup((here / "page.js").read_text(encoding="utf-8")),
        plotly=lambda: Markup(_plotly() if blocks else ""),
    )


def _for_script(block: Plot | Queries) -> dict[str, Any]:
    if isinstance(block, Plot):
        return {"kind": "plot", "figures": block.figures, "shared": block.shared}
    return {"kind": "queries", "rows": block.rows, "documents": block.documents, "baseline": block.baseline}


def _inside_script(text: str) -> str:
    """JSON that can't end the script it stands in, and holds nothing that older scripts take for a line's end."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _plotly() -> str:
    return (
        (files("plotly") / "package_data" / "plotly.min.js")
        .read_text(encoding="utf-8")
        .replace("</script", "<\\/script")
    )


def data_page(report: Mapping[str, Any], title: str) -> str:
    """Return a page about prepared data alone.

    Args:
        report: What `prepare` found.
        title: Of the page.
    """
    tables: list[Block] = [Table(header, rows, name) for name, header, rows in data_tables(report)]
    sections = [Section("Data", tables)]
    for reason, texts in report.get("samples", {}).items():
        rows = [[text if isinstance(text, str) else " / ".join(text)] for text in texts]
        sections.append(Section(f"Dropped: {reason}", [Table(["text"], rows)]))
    # no time and no version: of the same data, the same page
    return html_page(Report(title, [flow_of(report)], sections, "Made by bge-cocktail prepare"))


def _made() -> str:
    return f"Made by bge-cocktail {__version__}, {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}"


MARKS = {"best": "**{}**"}
MOST_ROWS = 40


def markdown(report: Report) -> str:
    """Return the words and tables of a report; a plot is what it shows, in words."""
    lines = [f"# {_plain(report.title)}", ""]
    lines += [f"- {_plain(sentence)}" for sentence in report.summary]
    for section in report.sections:
        lines += ["", f"## {_plain(section.title)}"]
        for block in section.blocks:
            lines += _lines(block)
    return "\n".join([*lines, "", f"*{report.made}*", ""])


def _lines(block: Block) -> list[str]:
    if isinstance(block, Words):
        return ["", f"> {_plain(block.text)}" if block.warns else _plain(block.text)]
    if isinstance(block, Code):
        fence = "```" if "```" not in block.text else "````"
        return ["", *([f"{block.title}:", ""] if block.title else []), f"{fence}sh", block.text, fence]
    if isinstance(block, Plot):
        return ["", f"*{_plain(block.title)}:* {_plain(block.said)}"] if block.said else []
    if isinstance(block, Table):
        return _table(block)
    gained = sum(row["after"] > row["before"] for row in block.rows)
    return ["", f"{block.title}: {gained} and {len(block.rows) - gained} are in the HTML report."]


def _table(block: Table) -> list[str]:
    rows = block.cells()
    lines = ["", f"**{_plain(block.title)}**"] if block.title else []
    lines += ["", _row([Cell(name) for name in block.header]), "|---" * len(block.header) + "|"]
    lines += [_row(row) for row in rows[:MOST_ROWS]]
    if len(rows) > MOST_ROWS:
        lines += ["", f"... and {len(rows) - MOST_ROWS} rows more"]
    return lines


def _row(cells: list[Cell]) -> str:
    shown = []
    for cell in cells:
        text = MARKS.get(cell.tone, "{}").format(_plain(cell.text))
        shown.append(f"{text} ({_plain(cell.note)})" if cell.note else text)
    return "| " + " | ".join(shown) + " |"


def _plain(text: str) -> str:
    """Return a text that means nothing to Markdown: one line, no bars, no tags."""
    line = " ".join(text.split())
    for mark in "\\|*_`[]":
        line = line.replace(mark, "\\" + mark)
    return line.replace("<", "&lt;")


def write_atlas(collected: ReportInput, path: Path) -> None:
    """One row a text and model: where it lies, what it is.

    Raises:
        UsageError: No evaluation keeps embeddings.
    """
    import pyarrow as pa
    from pyarrow import parquet

    tables = []
    for group in collected.evaluated:
        points = group.details.points
        drawn = planes(points, [model.model for model in group.models], collected.reduce, collected.seed)
        for (model, task), plane in drawn.items():
            texts, groups, _ = points[model, task]
            same = {"model": [model] * len(texts), "task": [task] * len(texts)}
            tables.append(pa.table({**same, "text": texts, "group": groups, "x": plane[:, 0], "y": plane[:, 1]}))
    if not tables:
        raise UsageError("no evaluation here keeps embeddings for a map; evaluate with `map_texts` above 0")
    parquet.write_table(pa.concat_tables(tables), path, compression="zstd")


def build_report(collected: ReportInput, title: str) -> Report:
    """Return all sections that the runs have something for.

    Args:
        collected: From `collected.gather`.
        title: Of the report.
    """
    order = sorted(report_sections, key=lambda name: (report_sections.trait(name, "order", 50), name))
    sections = []
    for name in order:
        with as_written(f"what the section '{name}' of the report shows"):
            if (section := report_sections[name](collected)) is not None:
                sections.append(section)
    summary = [sentence for group in collected.evaluated for sentence in (group.advice(), *group.words().values())]
    summary = [sentence for sentence in summary if sentence]
    going = sum(not step.finished for step in collected.steps)
    if going:
        summary.append(f"{going} of {len(collected.steps)} runs {'is' if going == 1 else 'are'} not finished.")
    if not summary:
        one = len(collected.steps) == 1
        summary = [
            "One run, which compares no models." if one else f"{len(collected.steps)} runs; none compares models."
        ]
    return Report(title, summary, sections, _made())


def check_output(path: Path) -> None:
    """Raise unless a report can be written so.

    Raises:
        UsageError: Its name ends in nothing known, or it is a folder.
    """
    if path.suffix not in WRITERS:
        raise UsageError(f"{path}: the name of a report has another ending.{nearest(path.suffix, WRITERS)}")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; a report is a file")


def write_report(report: Report, collected: ReportInput, path: Path) -> None:
    """Write a report, whole or not at all: a page, Markdown, JSON, a picture, or a table of the maps by its name's end.

    Args:
        report: From `build_report`.
        collected: What it was built of.
        path: The file.

    Raises:
        UsageError: The name ends in nothing known, or the runs hold nothing that such a file shows.
    """
    check_output(path)
    write = WRITERS[path.suffix]
    with new_file(path) as working, as_written("what the report shows"):
        write(report, collected, working)


def _page(report: Report, _collected: ReportInput, path: Path) -> None:
    path.write_text(html_page(report), encoding="utf-8")


def _markdown(report: Report, _collected: ReportInput, path: Path) -> None:
    path.write_text(markdown(report), encoding="utf-8")


def _json(report: Report, collected: ReportInput, path: Path) -> None:
    content: Mapping[str, Any] = {
        **report.to_json(),
        "evaluations": [
            {
                "names": list(group.names),
                "baseline": group.baseline.model,
                "models": [model.to_json() for model in group.models],
                "changes": {
                    model: [change.to_json() for change in changes] for model, changes in group.changes.items()
                },
            }
            for group in collected.evaluated
        ],
        "runs": [{"name": step.name, "finished": step.finished, **step.described} for step in collected.steps],
    }
    path.write_text(json.dumps(finite(content), ensure_ascii=False, indent=1, default=str) + "\n", encoding="utf-8")


def _picture(kind: str) -> Callable[[Report, ReportInput, Path], None]:
    def write(_report: Report, collected: ReportInput, path: Path) -> None:
        from bge_cocktail.report.pictures import draw_summary

        draw_summary(collected, path, kind)

    return write


def _atlas(_report: Report, collected: ReportInput, path: Path) -> None:

    write_atlas(collected, path)


WRITERS: dict[str, Callable[[Report, ReportInput, Path], None]] = {
    ".html": _page,
    ".md": _markdown,
    ".json": _json,
    ".png": _picture("png"),
    ".pdf": _picture("pdf"),
    ".parquet": _atlas,
}
