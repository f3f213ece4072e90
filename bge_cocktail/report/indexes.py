"""Indexes beside each other: what they find against how fast they are, and how large."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bge_cocktail.indexes import IndexScore
from bge_cocktail.report.tradeoff import BLUE, INK, finish


def draw_indexes(scores: Sequence[IndexScore], path: Path, *, k: int, title: str) -> None:
    """Draw the picture as a PNG; the area of a dot is the size of the index.

    Args:
        scores: Of the indexes.
        path: The file to write.
        k: The rank of the recall.
        title: What was searched.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    largest = max(one.megabytes for one in scores)
    axes.scatter(
        [one.queries_a_second for one in scores],
        [one.recall for one in scores],
        s=[40 + 900 * one.megabytes / largest for one in scores],
        color=BLUE,
        alpha=0.5,
        linewidths=0,
    )
    for one in scores:
        axes.annotate(
            f"{one.index}, {one.megabytes:.1f} MB",
            (one.queries_a_second, one.recall),
            xytext=(0, 12),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.margins(0.18)
    finish(figure, axes, path, target="queries a second", general=f"recall@{k} against the exact search", title=title)
