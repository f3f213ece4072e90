"""Maps of embeddings: texts of a task on a plane, under the baseline and under another model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import UsageError, how_to_install
from bge_cocktail.report.blocks import (
    COLOURS,
    MUTED,
    Block,
    Plot,
    Section,
    Words,
    figure,
    hover,
    plain,
    report_sections,
)
from bge_cocktail.report.collect import ComparedEvaluations, ReportInput

Plane = NDArray[np.float64]
Points = Mapping[tuple[str, str], tuple[list[str], list[str], NDArray[np.float32]]]
MOST_MODELS = 5
MOST_GROUPS = 9
MOST_MAPS = 24


@report_sections("maps", order=40)
def maps(collected: ReportInput) -> Section | None:
    """Embeddings on a plane, before and after, coloured by label or relevance."""
    blocks: list[Block] = []
    for group in collected.evaluated:
        figures, shared, left = _figures(group, collected.reduce, collected.seed)
        if not figures:
            continue
        blocks.append(Plot("Embeddings on a plane", figures, shared, "Texts of a task, near where alike."))
        way = "two principal components" if collected.reduce == "pca" else "UMAP"
        blocks.append(
            Words(
                f"A draw of each task's texts by {way}, each model's map turned onto the baseline's (Procrustes). A "
                "map of two dimensions shows a part of what the model sees: scores decide."
            )
        )
        if left:
            blocks.append(
                Words(f"Without a map, to keep the page small or for other texts were drawn: {', '.join(left)}.")
            )
    return Section("Maps", blocks) if blocks else None


def project(embeddings: NDArray[np.float32], reduce: str, seed: int, onto: Plane | None = None) -> Plane:
    """Embeddings on a plane.

    Args:
        embeddings: Shape (texts, dimensions).
        reduce: ``pca``, or ``umap`` (McInnes et al., arXiv:1802.03426; the extra `umap`).
        seed: Of UMAP.
        onto: Places of the same texts; the plane is turned and mirrored to lie as near to them as it can.

    Returns:
        Shape (texts, 2), of mean 0 and mean square length 1.

    Raises:
        UsageError: UMAP isn't installed.
    """
    if reduce == "umap":
        try:
            from umap import UMAP
        except ImportError:
            raise UsageError(f"`map=umap` needs umap-learn; {how_to_install('umap')}") from None
        neighbours = min(15, max(2, len(embeddings) - 1))
        plane = np.asarray(UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed).fit_transform(embeddings))
        plane = plane.astype(np.float64)
    else:
        centred = embeddings.astype(np.float64) - embeddings.mean(axis=0)
        left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
        plane = np.zeros((len(embeddings), 2))
        plane[:, : min(2, len(sizes))] = (left * sizes)[:, :2]
    plane = plane - plane.mean(axis=0)
    plane = np.asarray(plane / max(float(np.sqrt((plane**2).sum(axis=1).mean())), 1e-12), np.float64)
    if onto is None:
        return plane
    from scipy.linalg import orthogonal_procrustes

    return np.asarray(plane @ orthogonal_procrustes(plane, onto)[0])


def planes(points: Points, models: Sequence[str], reduce: str, seed: int) -> dict[tuple[str, str], Plane]:
    """Return the maps of models and tasks, each task's turned onto the first model's; none of a model with other texts.

    Args:
        points: As `EvaluationDetails` has them, by model and task.
        models: In their order.
        reduce: See `project`.
        seed: See `project`.
    """
    drawn: dict[tuple[str, str], Plane] = {}
    for task in dict.fromkeys(task for _, task in points):
        onto: Plane | None = None
        first = ""
        for model in models:
            if (model, task) not in points:
                continue
            if onto is None:
                first = model
                onto = drawn[model, task] = project(points[model, task][2], reduce, seed)
            elif points[model, task][:2] == points[first, task][:2]:  # else other texts were drawn
                drawn[model, task] = project(points[model, task][2], reduce, seed, onto)
    return drawn


def _figures(
    group: ComparedEvaluations, reduce: str, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]], list[str]]:
    names = [model.model for model in group.models]
    tasks = list(dict.fromkeys(task for _, task in group.details.points))
    shown = [(task, model) for task in tasks for model in names[1:MOST_MODELS] or names]
    kept, left = shown[:MOST_MAPS], shown[MOST_MAPS:]
    left += [(task, model) for task in tasks for model in names[MOST_MODELS:]]
    wanted = {(names[0], task) for task, _ in kept} | {(model, task) for task, model in kept}
    points = {key: value for key, value in group.details.points.items() if key in wanted}
    drawn = planes(points, names, reduce, seed)
    figures: dict[str, dict[str, Any]] = {}
    shared: dict[str, list[str]] = {}
    for task, other in kept:
        model = other
        before, after = (names[0], task), (model, task)
        if after not in drawn:
            left.append((task, model))
            model, after = names[0], before  # the baseline's map stands alone
        if before not in drawn:
            continue
        texts, groups, _ = points[before]
        kinds = _kinds(groups)
        for kind in kinds:
            shared[f"{task}\n{kind}"] = [
                hover(text, lines=3) for text, own in zip(texts, groups, strict=True) if _kind(own, kinds) == kind
            ]
        figures[task if model == names[0] else f"{task}: {model}"] = _figure(
            task, drawn[before], drawn[after], groups, kinds, (names[0], model)
        )
    return figures, shared, [f"{task} under {model}" for task, model in left]


def _figure(
    task: str, before: Plane, after: Plane, groups: Sequence[str], kinds: Sequence[str], models: tuple[str, str]
) -> dict[str, Any]:
    alone = models[0] == models[1]
    traces = []
    for place, kind in enumerate(kinds):
        rows = [row for row, own in enumerate(groups) if _kind(own, kinds) == kind]
        for side, plane in enumerate((before,) if alone else (before, after)):
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": plain(kind),
                    "legendgroup": kind,
                    "showlegend": side == 0,
                    "x": plane[rows, 0].round(3).tolist(),
                    "y": plane[rows, 1].round(3).tolist(),
                    "text": f"@{task}\n{kind}",
                    "xaxis": "x2" if side else "x",
                    "yaxis": "y2" if side else "y",
                    "marker": {
                        "size": 7,
                        "opacity": 0.8,
                        "color": MUTED if kind in ("other document", "others") else COLOURS[1 + place % 9],
                    },
                    "hovertemplate": "%{text}<extra>" + plain(kind) + "</extra>",
                }
            )
    bare = {"showgrid": False, "showline": False, "zeroline": False, "showticklabels": False}
    titles = [
        {"text": plain(name), "xref": "paper", "yref": "paper", "x": 0.02 + 0.51 * side, "y": 1.06, "showarrow": False}
        for side, name in enumerate(models[:1] if alone else models)
    ]
    return figure(
        traces,
        height=460,
        margin={"l": 8, "r": 8, "t": 32, "b": 8},
        annotations=titles,
        legend={"orientation": "h", "y": -0.03},
        xaxis={**bare, "domain": [0, 1 if alone else 0.49]},
        yaxis={**bare},
        **({} if alone else {"xaxis2": {**bare, "domain": [0.51, 1]}, "yaxis2": {**bare, "anchor": "x2"}}),
    )


def _kinds(groups: Sequence[str]) -> list[str]:
    """Return the most frequent groups, and what the rest is called."""
    counts = Counter(groups)
    if len(counts) <= MOST_GROUPS:
        return sorted(counts)
    return [*sorted(name for name, _ in counts.most_common(MOST_GROUPS - 1)), "others"]


def _kind(group: str, kinds: Sequence[str]) -> str:
    return group if group in kinds else "others"
