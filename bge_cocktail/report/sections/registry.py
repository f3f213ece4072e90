"""The table of sections."""

from __future__ import annotations

from collections.abc import Callable

from bge_cocktail.core.registry import Registry
from bge_cocktail.report.blocks import Section
from bge_cocktail.report.collect import ReportInput

Maker = Callable[[ReportInput], Section | None]
report_sections = Registry[Maker](
    "report-sections",
    [f"bge_cocktail.report.sections.{name}" for name in ("changes", "data", "maps", "merging", "scores", "training")],
)
