"""A report as Markdown, for a model card or a pull request."""

from __future__ import annotations

from bge_cocktail.report.content import Block, Cell, Code, Plot, Report, Table, Words

MARKS = {"best": "**{}**"}
MOST_ROWS = 40


def markdown(report: Report) -> str:
    """The words and tables of a report; a plot is what it shows, in words."""
    lines = [f"# {_plain(report.title)}", ""]
    lines += [f"- {_plain(sentence)}" for sentence in report.summary]
    for section in report.sections:
        lines += ["", f"## {section.title}"]
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
    """A text that means nothing to Markdown: one line, no bars, no tags."""
    line = " ".join(text.split())
    for mark in "\\|*_`[]":
        line = line.replace(mark, "\\" + mark)
    return line.replace("<", "&lt;")
