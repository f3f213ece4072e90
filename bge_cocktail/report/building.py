"""From runs to a report, and from a report to files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bge_cocktail import __version__
from bge_cocktail.errors import UsageError, nearest
from bge_cocktail.outputs import new_file
from bge_cocktail.report.content import Report, finite
from bge_cocktail.report.markdown import markdown
from bge_cocktail.report.material import Material
from bge_cocktail.report.page import html_page
from bge_cocktail.report.sections import report_sections


def build_report(material: Material, title: str) -> Report:
    """All sections that the runs have something for.

    Args:
        material: From `material.gather`.
        title: Of the report.
    """
    order = sorted(report_sections, key=lambda name: (report_sections.trait(name, "order", 50), name))
    sections = [section for name in order if (section := report_sections[name](material)) is not None]
    summary = [sentence for group in material.evaluated for sentence in group.words()]
    going = sum(not step.finished for step in material.steps)
    if going:
        summary.append(f"{going} of {len(material.steps)} runs {'is' if going == 1 else 'are'} not finished.")
    if not summary:
        one = len(material.steps) == 1
        summary = [
            "One run, which compares no models." if one else f"{len(material.steps)} runs; none compares models."
        ]
    made = f"Made by bge-cocktail {__version__}, {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}"
    return Report(title, summary, sections, made)


def check_output(path: Path) -> None:
    """Raise unless a report can be written so.

    Raises:
        UsageError: Its name ends in nothing known, or it is a folder.
    """
    if path.suffix not in WRITERS:
        raise UsageError(f"{path}: a report ends in {', '.join(WRITERS)}.{nearest(path.suffix, WRITERS)}")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; a report is a file")


def write_report(report: Report, material: Material, path: Path) -> None:
    """Write a report, whole or not at all: a page, Markdown, JSON, a picture, or a table of the maps by its name's end.

    Args:
        report: From `build_report`.
        material: What it was built of.
        path: The file.

    Raises:
        UsageError: The name ends in nothing known, or the runs hold nothing that such a file shows.
    """
    check_output(path)
    write = WRITERS[path.suffix]
    with new_file(path) as working:
        write(report, material, working)


def _page(report: Report, _material: Material, path: Path) -> None:
    path.write_text(html_page(report), encoding="utf-8")


def _markdown(report: Report, _material: Material, path: Path) -> None:
    path.write_text(markdown(report), encoding="utf-8")


def _json(report: Report, material: Material, path: Path) -> None:
    content: Mapping[str, Any] = {
        **report.to_json(),
        "evaluations": [
            {
                "names": list(group.names),
                "baseline": group.baseline.model,
                "models": [model.to_json() for model in group.models],
                "changes": {model: [one.to_json() for one in changes] for model, changes in group.changes.items()},
            }
            for group in material.evaluated
        ],
        "runs": [{"name": step.name, "finished": step.finished, **step.described} for step in material.steps],
    }
    path.write_text(json.dumps(finite(content), ensure_ascii=False, indent=1, default=str) + "\n", encoding="utf-8")


def _picture(kind: str) -> Callable[[Report, Material, Path], None]:
    def write(_report: Report, material: Material, path: Path) -> None:
        from bge_cocktail.report.picture import draw_summary

        draw_summary(material, path, kind)

    return write


def _atlas(_report: Report, material: Material, path: Path) -> None:
    from bge_cocktail.report.atlas import write_atlas

    write_atlas(material, path)


WRITERS: dict[str, Callable[[Report, Material, Path], None]] = {
    ".html": _page,
    ".md": _markdown,
    ".json": _json,
    ".png": _picture("png"),
    ".pdf": _picture("pdf"),
    ".parquet": _atlas,
}
