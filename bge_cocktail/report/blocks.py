"""What a report is made of: sections of words, tables, plots and queries; and the table of makers of sections."""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any, Literal

from bge_cocktail.core.registry import Registry
from bge_cocktail.report.collect import ReportInput

_NUMBER = re.compile(r"-|[-+]?[\d.,]+( ?(%|s|MB))?( (to|±) [-+]?[\d.]+)?")
Tone = Literal["", "better", "worse", "best", "muted"]


@dataclass(frozen=True, slots=True)
class Words:
    """A paragraph.

    Attributes:
        text: What it says.
        warns: Whether it is something to look out for.
    """

    text: str
    warns: bool = False
    kind: str = "words"


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What it shows.
        note: Said smaller behind it, such as a difference.
        tone: What it is coloured as.
    """

    text: str
    note: str = ""
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        header: Of the columns.
        rows: As many cells each; a text is a cell without a note.
        title: Above it.
        folded: Whether a reader has to open it.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    title: str = ""
    folded: bool = False
    kind: str = "table"

    def cells(self) -> list[list[Cell]]:
        """Return the rows, all of them cells."""
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]

    def to_left(self) -> list[bool]:
        """Which columns are words, and so begin at the left; the first, and those with a cell that is no number."""
        columns = list(zip(*self.cells(), strict=True)) or [()] * len(self.header)
        return [
            not place or any(not _NUMBER.fullmatch(cell.text) for cell in column)
            for place, column in enumerate(columns)
        ]


@dataclass(frozen=True, slots=True)
class Plot:
    """One or several figures of Plotly, of which a reader sees one at a time.

    Attributes:
        title: Above it.
        figures: By the name that chooses them: ``data`` and ``layout``; a text ``@NAME`` in the place of a list stands
            for a list of `shared`.
        shared: Lists that several figures use.
        said: What the figure shows, for those who can't see it.
    """

    title: str
    figures: Mapping[str, Mapping[str, Any]]
    shared: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    said: str = ""
    kind: str = "plot"


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries or texts that gained and lost, to be searched.

    Attributes:
        title: Above it.
        rows: ``task``, ``model``, ``id``, ``text``, ``before``, ``after``, ``wanted`` (the label, or relevant documents
            with their ranks before and after), ``said`` before and after (labels, or documents and whether relevant).
        documents: Texts of documents by task and id.
        baseline: The model before.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    documents: Mapping[str, Mapping[str, str]]
    baseline: str
    kind: str = "queries"


@dataclass(frozen=True, slots=True)
class Code:
    """Lines for a shell or a file."""

    text: str
    title: str = ""
    kind: str = "code"


Block = Words | Table | Plot | Queries | Code


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report with a heading."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """What a link to it is called."""
        return "-".join("".join(one if one.isalnum() else " " for one in self.title.lower()).split())


@dataclass(frozen=True, slots=True)
class Report:
    """A report.

    Attributes:
        title: Of the page.
        summary: Sentences that say what was found.
        sections: In the order they are read.
        made: When and by which version.
        reload: Seconds after which its page is read anew, for runs that go on; 0: never.
    """

    title: str
    summary: Sequence[str]
    sections: Sequence[Section]
    made: str
    reload: int = 0

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {name: value for name, value in asdict(self).items() if name != "reload"}


def finite(value: Any) -> Any:
    """Return what JSON can hold: numbers that are none, or infinite, become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


MUTED = "#8a94a0"
# told apart on light and on dark ground
COLOURS = ("#8a94a0", "#2f7bd9", "#e0742f", "#23a06d", "#a45ad1", "#c79a1b", "#d2465f", "#2aa7b8", "#7c86e8", "#8c6d46")


def colour_of(place: int) -> str:
    """Return the colour of the model at a place; the baseline is grey."""
    return COLOURS[place % len(COLOURS)]


def colours_of(collected: ReportInput, names: Iterable[str]) -> dict[str, str]:
    """Return a colour for each name: in all plots that of the evaluated model of this name; others have the next."""
    known = {model.model: place for group in collected.evaluated for place, model in enumerate(group.models)}
    free = count(1 + max(known.values(), default=0))
    return {name: colour_of(known[name] if name in known else next(free)) for name in dict.fromkeys(names)}


def figure(traces: Sequence[dict[str, Any]], **layout: Any) -> dict[str, Any]:
    """Return a figure of Plotly; the page gives it the colours of its ground."""
    shown = {"margin": {"l": 64, "r": 16, "t": 40, "b": 48}, "height": 420, **layout}
    # above the figure, where no title of an axis is in its way
    # tasks and runs may be called 2024, which is neither a number nor a date
    for axis in ("xaxis", "yaxis"):
        if any(isinstance(one, str) for trace in traces for one in list(trace.get(axis[0]) or ())[:1]):
            shown[axis] = {"type": "category", **shown.get(axis, {})}
    shown.setdefault("legend", {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"})
    return {"data": list(traces), "layout": shown}


def plain(name: str) -> str:
    """Return a name that Plotly shows as it is: no marks, and no place for a value."""
    return html.escape(name, quote=False).replace("%{", "%\u200b{")


def hover(text: str, width: int = 70, lines: int = 4) -> str:
    """Return a text as Plotly shows it under the pointer: some lines, no marks of its own."""
    wrapped = textwrap.wrap(" ".join(text.split()), width) or [""]
    kept = wrapped[:lines]
    if len(wrapped) > lines:
        kept[-1] += " …"
    return "<br>".join(html.escape(line, quote=False) for line in kept)


Maker = Callable[[ReportInput], Section | None]
report_sections = Registry[Maker](
    "report-sections",
    [f"bge_cocktail.report.sections.{name}" for name in ("changes", "data", "maps", "merging", "scores", "training")],
)
