"""How a search for options is shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bge_cocktail.cli.flags import show


def searched_names(given: str) -> list[str]:
    """The options that ``--search a,b`` names."""
    return [name.strip().replace("-", "_") for name in given.split(",")]


def show_search(output: Path, found: dict[str, Any], names: Sequence[str], metric: str, output_format: str) -> None:
    """Print the trials, best first, and how much each option matters."""
    from bge_cocktail.report.table import text_table

    rows = [
        [
            str(one["trial"]),
            *(f"{one[name]:.3g}" for name in names),
            "-" if one["dev"] is None else f"{one['dev']:.4f}",
            one["state"],
        ]
        for one in sorted(found["trials"], key=lambda one: -(one["dev"] or 0))
    ]
    matter = ", ".join(f"{name} {value:.2f}" for name, value in found["importance"].items())
    text = text_table(("trial", *names, f"dev {metric}", ""), rows) + (f"\n\nimportance: {matter}" if matter else "")
    show({"output": str(output), **found}, text, output_format)
