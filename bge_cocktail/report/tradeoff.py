"""The trade-off picture: target against general as the tuned model's share goes from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bge_cocktail.provenance import new_file

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

    shares, targets, generals = zip(*points, strict=True)
    figure, axes = pyplot.subplots(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    axes.axhline(generals[0], color=MUTED, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
    axes.annotate(
        "general tasks, base model",
        (1, generals[0]),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 4),
        textcoords="offset points",
        ha="right",
        color=MUTED,
        fontsize=8,
    )
    axes.plot(targets, generals, color=BLUE, linewidth=2, zorder=2)
    axes.scatter(targets, generals, s=34, color="white", edgecolors=BLUE, linewidths=1.6, zorder=3)
    labels = {shares[0]: "base", shares[-1]: "tuned"}
    for share, x, y in points:
        picked = abs(share - chosen) < 1e-9
        if picked:
            axes.scatter([x], [y], s=90, color=ORANGE, zorder=4)
        text = f"cocktail, share {share:g}" if picked else labels.get(share, f"{share:g}")
        strong = picked or share in labels
        axes.annotate(
            text,
            (x, y),
            xytext=(0, 10),
            textcoords="offset points",
            ha="center",
            color=ORANGE if picked else INK if strong else MUTED,
            fontsize=9.5 if strong else 7.5,
            fontweight="bold" if strong else "normal",
            zorder=5,
        )
    axes.margins(x=0.08, y=0.18)
    axes.set_xlabel(f"{target}  →  better", color=INK)
    axes.set_ylabel(f"{general}  →  better", color=INK)
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    with new_file(path) as working:
        figure.savefig(working, format="png")
    pyplot.close(figure)
