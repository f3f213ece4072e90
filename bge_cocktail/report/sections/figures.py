"""What the figures of a report share."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from typing import Any

MUTED = "#8a94a0"
# told apart on light and on dark ground
COLOURS = ("#8a94a0", "#2f7bd9", "#e0742f", "#23a06d", "#a45ad1", "#c79a1b", "#d2465f", "#2aa7b8", "#7c86e8", "#8c6d46")


def colour_of(place: int) -> str:
    """The colour of the model at a place; the baseline is grey."""
    return COLOURS[place % len(COLOURS)]


def figure(traces: Sequence[dict[str, Any]], **layout: Any) -> dict[str, Any]:
    """A figure of Plotly; the page gives it the colours of its ground."""
    shown = {"margin": {"l": 64, "r": 16, "t": 40, "b": 48}, "height": 420, **layout}
    # above the figure, where no title of an axis is in its way
    # tasks and runs may be called 2024, which is neither a number nor a date
    for axis in ("xaxis", "yaxis"):
        if any(isinstance(one, str) for trace in traces for one in list(trace.get(axis[0]) or ())[:1]):
            shown[axis] = {"type": "category", **shown.get(axis, {})}
    shown.setdefault("legend", {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"})
    return {"data": list(traces), "layout": shown}


def plain(name: str) -> str:
    """A name that Plotly shows as it is: no marks, and no place for a value."""
    return html.escape(name, quote=False).replace("%{", "%\u200b{")


def hover(text: str, width: int = 70, lines: int = 4) -> str:
    """A text as Plotly shows it under the pointer: some lines, no marks of its own."""
    wrapped = textwrap.wrap(" ".join(text.split()), width) or [""]
    kept = wrapped[:lines]
    if len(wrapped) > lines:
        kept[-1] += " …"
    return "<br>".join(html.escape(line, quote=False) for line in kept)
