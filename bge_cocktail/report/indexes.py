"""Indexes beside each other: what they find, how large and how fast they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bge_cocktail.indexes import IndexScore
from bge_cocktail.outputs import new_file
from bge_cocktail.report.tradeoff import BLUE, INK, MUTED


def draw_indexes(scores: Sequence[IndexScore], path: Path, *, k: int, title: str) -> None:
    """Draw bars as a PNG.

    Args:
        scores: Of the indexes.
        path: The file to write.
        k: The rank of the recall.
        title: What was searched.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = (
        (f"recall@{k} against the exact search", [one.recall for one in scores], "{:.3f}"),
        ("megabytes", [one.megabytes for one in scores], "{:.1f}"),
        ("queries a second", [one.queries_a_second for one in scores], "{:,.0f}"),
    )
    height = 1.2 + 0.34 * len(scores)
    figure, all_axes = pyplot.subplots(1, 3, figsize=(9.6, height), dpi=150, layout="constrained", sharey=True)
    names = [one.index + (" *" if one.rescored else "") for one in scores]
    for axes, (label, values, form) in zip(all_axes, panels, strict=True):
        bars = axes.barh(names, values, color=BLUE, height=0.62)
        axes.bar_label(bars, [form.format(value) for value in values], padding=3, fontsize=8, color=INK)
        axes.set_title(label, fontsize=9, color=INK, loc="left")
        axes.set_xlim(0, 1.25 * max(values))
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
    all_axes[0].invert_yaxis()
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, fontweight="bold")
    if any(one.rescored for one in scores):
        figure.supxlabel(
            "* full embeddings order its candidates, and are kept beside it", fontsize=8, color=MUTED, x=0.01, ha="left"
        )
    with new_file(path) as working:
        figure.savefig(working, format="png")
    pyplot.close(figure)
