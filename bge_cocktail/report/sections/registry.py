"""The table of sections."""

from __future__ import annotations

from collections.abc import Callable

from bge_cocktail.registry import Registry
from bge_cocktail.report.content import Section
from bge_cocktail.report.material import Material

Maker = Callable[[Material], Section | None]
report_sections = Registry[Maker]("report-sections")
# traits: order (the place in the report; 50 without it)
