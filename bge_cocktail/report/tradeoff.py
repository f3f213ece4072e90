"""The trade-off picture: target against general as the tuned model's share goes from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bge_cocktail.outputs import new_file

SMALLEST_HEIGHT = 0.04
INK, MUTED, BLUE, ORANGE = "#1f2933", "#8a94a0", "#2a6fdb", "#d9622b"


def draw_tradeoff(
    points: Sequence[tuple[float, float, float]],
    path: Path,
    *,
    chosen: float,
    target: str,
    general: str,
    title: str,
) -> None:
    """Draw the picture as a PNG.

    Args:
        points: Share of the tuned model, target, general; in order of share.
        path: The file to write.
        chosen: The share of the cocktail that was kept.
        target: Label of the target axis.
        general: Label of the general axis.
        title: Above the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    _, targets, generals = zip(*points, strict=True)
    figure, axes = pyplot.subplots(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    axes.axhline(generals[0], color=MUTED, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
    axes.annotate(
        "general tasks, base model",
        (0.3, generals[0]),
        xycoords=("axes fraction", "data"),
        xytext=(0, -12),
        textcoords="offset points",
        ha="center",
        color=MUTED,
        fontsize=8,
    )
    axes.plot(targets, generals, color=BLUE, linewidth=2, zorder=2)
    axes.scatter(targets, generals, s=34, color="white", edgecolors=BLUE, linewidths=1.6, zorder=3)
    axes.margins(x=0.1)
    # differences of a point or two shall not fill the picture
    middle, height = (min(generals) + max(generals)) / 2, max(max(generals) - min(generals), SMALLEST_HEIGHT)
    axes.set_ylim(middle - 0.75 * height, middle + 0.75 * height)
    _label_points(axes, points, chosen)
    finish(figure, axes, path, target=target, general=general, title=title)


def finish(figure: Any, axes: Any, path: Path, *, target: str, general: str, title: str) -> None:
    """Give a picture of target against general scores its frame, and write it as a PNG."""
    from matplotlib import pyplot

    axes.set_xlabel(f"{target}  →  better", color=INK)
    axes.set_ylabel(f"{general}  →  better", color=INK)
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    with new_file(path) as working:
        figure.savefig(working, format="png")
    pyplot.close(figure)


def _label_points(axes: Any, points: Sequence[tuple[float, float, float]], chosen: float) -> None:
    """Names base, tuned and cocktail; other shares get their number where there is room for it."""
    names = {points[0][0]: "base", points[-1][0]: "tuned", chosen: f"cocktail, share {chosen:g}"}
    taken: list[tuple[float, float]] = []
    for share, x, y in sorted(points, key=lambda point: point[0] not in names):
        place = axes.transData.transform((x, y))
        strong = share in names
        if not strong and any(abs(place[0] - px) < 36 and abs(place[1] - py) < 30 for px, py in taken):
            continue
        taken.append((place[0], place[1]))
        picked = share == chosen
        if picked:
            axes.scatter([x], [y], s=90, color=ORANGE, zorder=4)
        axes.annotate(
            names.get(share, f"{share:g}"),
            (x, y),
            xytext=(0, -18 if names.get(share) == "tuned" else 10),
            textcoords="offset points",
            ha="right" if picked else "center",
            color=ORANGE if picked else INK if strong else MUTED,
            fontsize=9.5 if strong else 8,
            fontweight="bold" if strong else "normal",
            zorder=5,
        )
