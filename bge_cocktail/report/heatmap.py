"""Where models differ, layer by layer: distances from the reference, cosines and sign conflicts of task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bge_cocktail.outputs import new_file
from bge_cocktail.report.tradeoff import INK

MOST_NUMBERS = 200


def draw_heatmap(
    layers: Sequence[str], parts: Sequence[tuple[str, Sequence[str], Sequence[Sequence[float | None]], str]], path: Path
) -> None:
    """Draw a heat map as a PNG.

    Args:
        layers: Names of the columns.
        parts: One after the other downwards: title, names of the rows, values of shape (rows, layers), and what the
            colours are for: ``size`` (0 upwards, shown in %), ``cosine`` (-1 to 1) or ``share`` (0 to 1, 0.5 being
            chance). None leaves a field empty.
        path: The file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [part for part in parts if len(part[1])]
    heights = [len(rows) for _, rows, _, _ in shown]
    figure, axes = pyplot.subplots(
        len(shown),
        1,
        figsize=(max(6.0, 2.8 + 0.55 * len(layers)), 1.2 * len(shown) + 0.42 * sum(heights)),
        dpi=150,
        layout="constrained",
        gridspec_kw={"height_ratios": heights},
        squeeze=False,
    )
    for axis, (title, rows, values, kind) in zip(axes[:, 0], shown, strict=True):
        _draw_part(axis, title, rows, np.asarray(values, np.float64), kind, layers if axis is axes[-1, 0] else [])
    with new_file(path) as working:
        figure.savefig(working, format="png")
    pyplot.close(figure)


def _draw_part(
    axis: Any, title: str, rows: Sequence[str], values: np.ndarray, kind: str, layers: Sequence[str]
) -> None:
    colours: dict[str, tuple[str, float, float]] = {
        "size": ("Blues", 0.0, max(float(np.nanmax(values)), 1e-9)),
        "cosine": ("RdBu", -1.0, 1.0),
        "share": ("RdBu_r", 0.0, 1.0),
    }
    name, low, high = colours[kind]
    axis.imshow(values, cmap=name, vmin=low, vmax=high, aspect="auto")
    axis.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_xticks(range(len(layers)), layers, fontsize=8, rotation=45, ha="right")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values if values.size <= MOST_NUMBERS else values[:0]):
        if np.isnan(value):
            continue
        middle, far = (0.0, 0.6) if kind == "size" else (0.5, 0.35)
        dark = abs((value - low) / (high - low) - middle) > far
        text = f"{100 * value:.1f}" if kind == "size" else f"{value:.2f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else INK)
