"""Pictures (PNG) that folders carry: the trade-off, merges that were tried, layers, indexes."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bge_cocktail.core.outputs import new_file

log = logging.getLogger(__name__)
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
        (0.99, generals[0]),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4 if generals[-1] < generals[0] else -12),  # where the curve is not
        textcoords="offset points",
        ha="right",
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
        save(figure, working, "png")
    pyplot.close(figure)


def _label_points(axes: Any, points: Sequence[tuple[float, float, float]], chosen: float) -> None:
    """Names base, tuned and cocktail, and of the other shares says their number."""
    names = {points[0][0]: "base", points[-1][0]: "tuned", chosen: f"cocktail, share {chosen:g}"}
    labels = []
    for share, x, y in points:
        strong, picked = share in names, share == chosen
        if picked:
            axes.scatter([x], [y], s=90, color=ORANGE, zorder=4)
        color = ORANGE if picked else INK if strong else MUTED
        look = {"color": color, "fontsize": 9.5 if strong else 8, "fontweight": "bold" if strong else "normal"}
        labels.append(Label(names.get(share, f"{share:g}"), x, y, look, needed=strong))
    place_labels(axes, labels)


@dataclass(frozen=True, slots=True)
class Label:
    """What is written beside a point.

    Attributes:
        text: The words.
        x: Of the point.
        y: Of the point.
        look: matplotlib's properties of a text.
        needed: Whether it is written where there is no room, too.
    """

    text: str
    x: float
    y: float
    look: Mapping[str, Any]
    needed: bool = True


def place_labels(axes: Any, labels: Sequence[Label]) -> None:
    """Write labels beside their points, over no curve and no other label, a line to the point where one is further off.

    What is written or drawn on the axes before is kept clear.
    """
    with _boxes_are_told():
        _place_labels(axes, labels)


def _place_labels(axes: Any, labels: Sequence[Label]) -> None:
    from adjustText import adjust_text

    axes.figure.canvas.draw()  # where things stand is known only now
    written = list(axes.texts)
    steps = np.linspace(0, 1, 24)
    xs, ys = [label.x for label in labels], [label.y for label in labels]
    for line in axes.lines:
        if line.get_transform() == axes.transData:  # curves, and not what runs across the picture
            points = np.column_stack(line.get_data())
            for one, other in itertools.pairwise(points):
                xs += list(one[0] + steps * (other[0] - one[0]))
                ys += list(one[1] + steps * (other[1] - one[1]))
    texts = [
        axes.text(label.x, label.y, label.text, ha="center", va="center", zorder=6, **label.look) for label in labels
    ]
    choose_fonts(axes.figure)  # how wide labels are depends on them
    adjust_text(
        texts,
        xs,
        ys,
        target_x=[label.x for label in labels],
        target_y=[label.y for label in labels],
        objects=written or None,
        ax=axes,
        expand=(1.3, 1.6),
        force_text=(0.3, 0.4),
        force_static=(0.3, 0.5),
        iter_lim=200,  # and not by time, which would draw another picture each time
        min_arrow_len=8,
        arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.8, "shrinkB": 4},
    )
    room = [text.get_window_extent() for text in written]
    for label, text in sorted(zip(labels, texts, strict=True), key=lambda one: not one[0].needed):
        place = text.get_window_extent()
        if label.needed or not any(place.overlaps(other) for other in room):
            room.append(place)
        else:
            for line in [patch for patch in axes.patches if getattr(patch, "patchA", None) is text]:
                line.remove()
            text.remove()


def draw_front(
    trials: Sequence[Mapping[str, Any]], chosen: Sequence[float], path: Path, *, target: str, general: str
) -> None:
    """Draw the picture as a PNG.

    Args:
        trials: ``weights``, ``target``, ``general`` and ``on_front`` of each merge; the base is the first.
        chosen: The weights that were kept.
        path: The file to write.
        target: Names of the target tasks.
        general: Names of the general tasks.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    front = sorted((trial["target"], trial["general"]) for trial in trials if trial.get("on_front"))
    axes.axhline(
        trials[0]["general"],
        color=MUTED,
        linewidth=1,
        linestyle=(0, (4, 4)),
        zorder=1,
        label="general score of the base",
    )
    axes.plot(*zip(*front, strict=True), color=BLUE, linewidth=2, marker="o", markersize=3, zorder=2, label="front")
    rest = [(trial["target"], trial["general"]) for trial in trials if not trial.get("on_front")]
    if rest:
        axes.scatter(*zip(*rest, strict=True), s=26, color=MUTED, zorder=3, label="tried")
    axes.scatter(*zip(*front, strict=True), s=34, color="white", edgecolors=BLUE, linewidths=1.6, zorder=4)
    kept = next(trial for trial in trials if list(trial["weights"]) == list(chosen))
    axes.scatter([kept["target"]], [kept["general"]], s=90, color=ORANGE, zorder=5, label="chosen")
    name = _shown_weights(chosen) if kept is not trials[0] else f"base, {_shown_weights(chosen)}"
    axes.margins(0.12)
    named = [("base", trials[0], INK), (name, kept, ORANGE)] if kept is not trials[0] else [(name, kept, ORANGE)]
    looks = [(text, trial["target"], trial["general"], {"color": color, "fontsize": 9}) for text, trial, color in named]
    place_labels(axes, [Label(*one) for one in looks])
    axes.legend(frameon=False, fontsize=8)
    labels = {"target": f"target: {target}", "general": f"general: {general}"}
    finish(figure, axes, path, **labels, title="Merges that were tried")


def _shown_weights(weights: Sequence[float]) -> str:
    return "weights " + ", ".join(f"{weight:.2f}" for weight in weights)


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
        save(figure, working, "png")
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


def draw_indexes(scores: Sequence[Mapping[str, Any]], path: Path, *, k: int, title: str) -> None:
    """Draw bars as a PNG.

    Args:
        scores: Of each index its name (``index``), ``recall``, ``megabytes``, ``queries_a_second``, and whether full
            embeddings order its candidates (``rescored``).
        path: The file to write.
        k: The rank of the recall.
        title: What was searched.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = (
        (f"recall@{k} against the exact search", [score["recall"] for score in scores], "{:.3f}"),
        ("megabytes", [score["megabytes"] for score in scores], "{:.1f}"),
        ("queries a second", [score["queries_a_second"] for score in scores], "{:,.0f}"),
    )
    height = 1.2 + 0.34 * len(scores)
    figure, all_axes = pyplot.subplots(1, 3, figsize=(9.6, height), dpi=150, layout="constrained", sharey=True)
    names = [score["index"] + (" *" if score["rescored"] else "") for score in scores]
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
    if any(score["rescored"] for score in scores):
        figure.supxlabel(
            "* full embeddings order its candidates, and are kept beside it", fontsize=8, color=MUTED, x=0.01, ha="left"
        )
    with new_file(path) as working:
        save(figure, working, "png")
    pyplot.close(figure)


# families that have the letters of names in Chinese, Japanese and Korean, those of Linux, macOS and Windows
_WIDE_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB", "Heiti TC", "Apple SD Gothic Neo"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS"),
)
_told: set[str] = set()


def save(figure: Any, path: Path, kind: str) -> None:
    """Write a figure, its texts in fonts that have their letters.

    Args:
        figure: matplotlib's.
        path: The file to write.
        kind: Its format.
    """
    choose_fonts(figure)
    with _boxes_are_told():
        figure.savefig(path, format=kind)


@contextmanager
def _boxes_are_told() -> Iterator[None]:
    """matplotlib's warnings of each letter that no font has are left out; `choose_fonts` says it once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def choose_fonts(figure: Any) -> None:
    """Give the texts of a figure fonts that have their letters; where none is installed, say once what to install."""
    from matplotlib import font_manager, text

    texts = [one for one in figure.findobj(text.Text) if not one.get_text().isascii()]
    letters = {letter for one in texts for letter in one.get_text() if not letter.isspace()}
    usual = texts[0].get_fontfamily() if texts else []
    lacking = (
        letters - _letters_of(font_manager.findfont(font_manager.FontProperties(family=usual))) if texts else set()
    )
    if lacking and (family := _family_with(lacking)) is not None:
        for one in texts:
            one.set_fontfamily([*usual, family])
    elif lacking and not lacking <= _told:
        _told.update(lacking)
        shown = "".join(sorted(lacking)[:8])
        log.warning(
            "no font here has the letters %s, which are boxes in pictures; install one that has (Debian: "
            "fonts-noto-cjk)",
            shown,
        )


def _family_with(letters: set[str]) -> str | None:
    """Return the installed font that has all of some letters, or most."""
    from matplotlib import font_manager

    # matplotlib keeps a list of fonts, and one may have been installed since
    known = {font.fname for font in font_manager.fontManager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known:
            with suppress(OSError, RuntimeError, ValueError):
                font_manager.fontManager.addfont(path)
    # the last resort has a box for every letter
    paths = {font.name: font.fname for font in font_manager.fontManager.ttflist if "Last Resort" not in font.name}
    found = {family: len(letters & _letters_of(paths[family])) for family in _WIDE_FONTS if family in paths}
    if not any(found.values()):
        found = {family: len(letters & _letters_of(path)) for family, path in sorted(paths.items())}
    best = max(found, key=lambda family: found[family], default=None)
    return best if best is not None and found[best] else None


@cache
def _letters_of(path: str) -> frozenset[str]:
    """Return the letters that a font's file has."""
    from matplotlib import font_manager

    return frozenset(map(chr, font_manager.get_font(path).get_charmap()))
