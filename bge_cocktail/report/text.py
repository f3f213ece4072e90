"""Tables in plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bge_cocktail.core.errors import printable

if TYPE_CHECKING:  # a merge prints a table, and needs none of these
    from bge_cocktail.evaluating.compare import Comparison
    from bge_cocktail.evaluating.scores import ModelScores
    from bge_cocktail.mining.candidates import Audit


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned table: columns of numbers to the right, others to the left."""
    header, rows = [*map(printable, header)], [[*map(printable, row)] for row in rows]
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    to_right = columns_of_numbers(header, rows)

    def aligned(line: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, to_right, strict=True)
        )
        return "  ".join(cells).rstrip()

    return "\n".join([aligned(header), "-" * (sum(widths) + 2 * (len(widths) - 1)), *map(aligned, rows)])


def columns_of_numbers(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Return which columns hold numbers only, and so go to the right."""
    return [bool(rows) and all(_is_number(row[place]) for row in rows) for place in range(len(header))]


def bytes_in_words(count: int) -> str:
    """Return a size in kB or MB."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1000:.0f} kB"


def duration(seconds: float) -> str:
    """Return about how long something takes."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def shortened(text: str, width: int = 70) -> str:
    """Return a text on one line, cut where it is longer."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 3] + "..."


def _is_number(cell: str) -> bool:
    return cell.rstrip(" +-").replace(".", "", 1).replace("-", "", 1).isdigit()


_MARKS = {"better": "+", "worse": "-"}


def score_table(results: Sequence[ModelScores], comparison: Comparison | None = None) -> str:
    """Return the main score of each model on each task.

    Args:
        results: Scores of each model on the same tasks.
        comparison: Of them with one; what is measurably better or worse is marked, and a line says so.
    """
    verdicts = {
        (model, change.task): change.verdict
        for model, changes in (comparison.changes if comparison is not None else {}).items()
        for change in changes
    }
    header = ["model"]
    for score in results[0].main():
        mark = " (target)" if score.role == "target" else ""
        header.append(f"{score.task}{mark} {score.metric}")
    rows = [
        [
            result.model,
            *(
                f"{score.value:.4f}{_MARKS.get(verdicts.get((result.model, score.task), ''), ' ')}"
                for score in result.main()
            ),
        ]
        for result in results
    ]
    table = text_table(header, rows)
    if comparison is None or not verdicts:
        return table
    tasks = max(map(len, comparison.changes.values()))
    sure = f"paired test, corrected for {tasks} tasks, {100 * comparison.confidence:g} %"
    return f"{table}\n+ measurably better than {comparison.baseline.model}, - worse ({sure})"


SHOWN = 12


def audit_text(audit: Audit) -> str:
    """Return the query, its positives, and its candidates by rank with what became of each."""
    chosen = [candidate for candidate in audit.candidates if candidate.decision == "chosen"]
    others = [candidate for candidate in audit.candidates if candidate.decision != "chosen"][
        : max(0, SHOWN - len(chosen))
    ]
    shown = sorted([*chosen, *others], key=lambda one: one.rank)
    rows = [["positive", "-", f"{similarity:.4f}", "-", shortened(text)] for text, similarity in audit.positives]
    rows += [
        [decision.decision, str(decision.rank), f"{decision.similarity:.4f}", decision.source, shortened(decision.text)]
        for decision in shown
    ]
    table = text_table(("decision", "rank", "similarity", "source", "text"), rows)
    more = len(audit.candidates) - len(shown)
    return f"query: {shortened(audit.query, 100)}\n{table}" + (f"\n... and {more} candidates more" if more else "")
