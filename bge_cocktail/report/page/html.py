"""A report as one page of HTML, with Plotly's JavaScript inside it once."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from bge_cocktail.report.content import Plot, Queries, Report, finite


def html_page(report: Report) -> str:
    """The page: no network, light and dark, for desktops and phones."""
    from jinja2 import Environment
    from markupsafe import Markup

    here = files("bge_cocktail.report.page")
    blocks: list[Any] = []

    def place(block: Plot | Queries) -> int:
        """Keep what the page's script draws, and give its place."""
        blocks.append(_drawn(block))
        return len(blocks) - 1

    def data() -> Any:
        """All that was placed; asked for after the body."""
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


def _drawn(block: Plot | Queries) -> dict[str, Any]:
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
