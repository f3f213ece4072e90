"""What differs between models: what stands against a merge, and where, layer by layer, tuning led."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from bge_cocktail.core.errors import CocktailError, UsageError
from bge_cocktail.core.outputs import new_folder, refuse_to_replace, scratch_folder, write_json
from bge_cocktail.core.pictures import draw_heatmap
from bge_cocktail.core.progress import progress
from bge_cocktail.core.runs import RUN_FILE, describe_run, hash_path
from bge_cocktail.merging.checkpoints import Checkpoint, close
from bge_cocktail.merging.compatible import (
    LEAST_COSINE,
    differences,
    pooling_of,
    prompts_of,
    sampled_cosine,
    tokenizer_hash,
)
from bge_cocktail.merging.heads import in_one_form
from bge_cocktail.merging.methods import Stack
from bge_cocktail.merging.plan import floats_of, tensor_of
from bge_cocktail.merging.resolve import open_model
from bge_cocktail.merging.tensors import count_of
from bge_cocktail.models.folder import is_classifier, model_folder
from bge_cocktail.models.layers import EMBEDDINGS, layer_of
from bge_cocktail.models.layout import declared_length, modules_of, transformer_folder
from bge_cocktail.options import MergeOptions

# cosines of task vectors within this of 0 say that the two have nothing to do with each other
NEARLY_SQUARE = 0.05


NOTHING: Any = ([], np.zeros((0, 1)), {}, {})


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a model says of itself.

    Attributes:
        model: Its name.
        parameters: How many numbers it has.
        dtypes: Of which types.
        modules: Its modules; ``-`` for plain transformers.
        pooling: How it pools.
        length: Its longest text, in tokens.
        prompts: Its prompts by name.
        tokenizer: A short hash of its vocabulary.
    """

    model: str
    parameters: int
    dtypes: str
    modules: str
    pooling: str
    length: int | None
    prompts: dict[str, str]
    tokenizer: str


@dataclass(frozen=True, slots=True)
class ModelPair:
    """Two models beside each other.

    Attributes:
        one: A model.
        other: Another.
        refused: What stands against their merge; none if nothing does.
        cosine: Between their weights, sampled.
        agreement: The cosine between their task vectors, where there is a reference for both.
        conflicts: The part of the numbers that both moved, to opposite sides.
        verdict: What that means for a merge.
    """

    one: str
    other: str
    refused: tuple[str, ...]
    cosine: float | None = None
    agreement: float | None = None
    conflicts: float | None = None
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What differs between models.

    Attributes:
        models: Each by itself; the reference first.
        pairs: All pairs.
        layers: Names of the groups of tensors, from the embeddings to what comes after the last layer.
        compared: Short names of the models that are compared layer by layer; those that are refused are not.
        moved: How far each of them is from the reference, relative to it; shape (compared, layers).
        agreement: Cosine of each pair's task vectors, by ``one × other``; shape (layers,); None where nothing moved.
        conflicts: Part of the numbers that each pair moved to opposite sides; shape (layers,).
    """

    models: tuple[ModelDescription, ...]
    pairs: tuple[ModelPair, ...]
    layers: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()
    moved: tuple[tuple[float, ...], ...] = ()
    agreement: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    conflicts: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def inspect(models: Sequence[str], base: str | None = None, pooling: str | None = None) -> Inspection:
    """Compare models that might be merged.

    Args:
        models: Folders or hub names.
        base: What they were tuned from; without it, the first model is the reference.
        pooling: How plain transformers folders pool.

    Raises:
        UsageError: Fewer than two models.
        DataError: A model that can't be read.
    """
    names = [*([base] if base is not None else []), *models]
    if len(names) < 2:
        raise UsageError("name at least two models, or one and its `base`")
    under_head = any(is_classifier(model_folder(name)) for name in names)
    with scratch_folder() as scratch:
        opened = [open_model(name, scratch, pooling, under_head=under_head) for name in names]
        try:
            return _compare(opened)
        finally:
            for checkpoint in opened:
                close(checkpoint)


def run_inspect(
    models: Sequence[str],
    output: Path,
    *,
    base: str | None = None,
    pooling: str | None = None,
    overwrite: bool = False,
) -> Inspection:
    """Compare models that might be merged, and keep all numbers and a heat map in a folder.

    Args:
        models: See `inspect`.
        output: The folder to write: inspect.json, run.json, heatmap.png.
        base: See `inspect`.
        pooling: See `inspect`.
        overwrite: Replace an older output of this tool.

    Raises:
        UsageError: Fewer than two models, or an output that exists.
        DataError: A model that can't be read.
    """
    started = time.monotonic()
    folders = {name: model_folder(name) for name in [*([base] if base else []), *models]}
    refuse_to_replace(output, overwrite, folders.values())
    inspected = inspect(models, base, pooling)
    with new_folder(output, overwrite=overwrite) as new:
        write_json(new / "inspect.json", inspected.to_json())
        if inspected.moved:
            cosines, shares = inspected.agreement, inspected.conflicts
            parts = [
                ("How far from the reference, in % of its length", inspected.compared, inspected.moved, "size"),
                ("Cosine of task vectors", list(cosines), list(cosines.values()), "cosine"),
                ("Part of the numbers moved to opposite sides", list(shares), list(shares.values()), "share"),
            ]
            draw_heatmap(inspected.layers, parts, new / "heatmap.png")
        inputs = {name: hash_path(folder) for name, folder in folders.items()}
        seconds = time.monotonic() - started
        write_json(new / RUN_FILE, describe_run("inspect", options={}, inputs=inputs, seconds=seconds))
    return inspected


def _compare(opened: list[Checkpoint]) -> Inspection:
    """Return what differs: every pair, and layer by layer those that could be merged with the first, the reference."""
    # prompts and lengths can be chosen, so they stand in the table of models and refuse nothing here
    lenient = MergeOptions(prompts_from=1, length_from=1)
    described = tuple(_describe(checkpoint) for checkpoint in opened)
    under_head = any(is_classifier(checkpoint.folder) for checkpoint in opened)
    opened, reasons = in_one_form(opened)
    refusals = {
        (row, column): tuple(
            # under a head, each was compared with the first classifier already
            [*reasons[row], *reasons[column]] if under_head else differences(opened[row], opened[column], lenient)
        )
        for row, column in combinations(range(len(opened)), 2)
    }
    comparable = [0, *(row for row in range(1, len(opened)) if not refusals[0, row])]
    layers, moved, agreement, conflicts = (
        _by_layer([opened[row] for row in comparable]) if len(comparable) > 1 else NOTHING
    )
    pairs = []
    for (row, column), refused in refusals.items():
        if refused:
            pairs.append(ModelPair(opened[row].name, opened[column].name, refused, verdict="refused"))
            continue
        cosine = sampled_cosine(opened[row], opened[column])
        # `agreement` counts the models after the reference, so one less; its last column is over all layers
        pair = (
            (comparable.index(row) - 1, comparable.index(column) - 1)
            if row in comparable and column in comparable and row > 0
            else None
        )
        angle = None if pair is None else _none_if_nan(agreement[pair][-1])
        opposite = None if pair is None else _none_if_nan(conflicts[pair][-1])
        names = (opened[row].name, opened[column].name)
        verdict = _verdict(cosine, angle) + ("" if under_head else _to_choose(opened[row], opened[column]))
        pairs.append(ModelPair(*names, (), cosine, angle, opposite, verdict))
    short = short_names([checkpoint.name for checkpoint in opened])
    labels = {pair: f"{short[comparable[pair[0] + 1]]} × {short[comparable[pair[1] + 1]]}" for pair in agreement}
    return Inspection(
        described,
        tuple(pairs),
        tuple(layers),
        tuple(short[row] for row in comparable[1:]),
        tuple(tuple(float(value) for value in row[:-1]) for row in moved),
        {name: tuple(map(_none_if_nan, agreement[pair][:-1])) for pair, name in labels.items()},
        {name: tuple(map(_none_if_nan, conflicts[pair][:-1])) for pair, name in labels.items()},
    )


def _by_layer(
    opened: list[Checkpoint],
) -> tuple[list[str], np.ndarray, dict[tuple[int, int], np.ndarray], dict[tuple[int, int], np.ndarray]]:
    """Distances, cosines and sign conflicts by layer, and over all layers in the last column."""
    reference, others = opened[0], opened[1:]
    keys = floats_of(reference)
    groups = [_group(key[1]) for key in keys]
    numbered = sorted({group for group in groups if group.startswith("layer")}, key=lambda group: int(group[6:]))
    layers = [group for group in ("embeddings", *numbered, "after") if group in groups]
    products = np.zeros((len(layers), len(others), len(others)))
    sizes = np.zeros(len(layers))
    both = np.zeros((len(layers), len(others), len(others)))
    opposite = np.zeros_like(both)
    with progress("comparing", sum(count_of(reference.tensors[key]) for key in keys)) as advance:
        for key, group in zip(keys, groups, strict=True):
            row = layers.index(group)
            tensors = [tensor_of(checkpoint, key) for checkpoint in others]
            stack = Stack(
                key[1], reference.tensors[key].shape, tensors, np.ones(len(others)), [], reference.tensors[key]
            )
            for tile in stack.tiles(base=True):
                sizes[row] += float(tile[-1] @ tile[-1])
                vectors = tile[:-1]
                vectors -= tile[-1]
                products[row] += vectors @ vectors.T
                signs = np.sign(vectors)
                both[row] += np.abs(signs) @ np.abs(signs).T
                # equal signs count 1, opposite ones -1: the sum is what is not opposite, twice
                opposite[row] += (np.abs(signs) @ np.abs(signs).T - signs @ signs.T) / 2
                advance(tile.shape[1])
    if not np.isfinite(products).all():
        raise CocktailError("a model holds NaN, infinite or too large values; bge-cocktail merge says which")
    products, both, opposite = (np.concatenate([one, one.sum(axis=0)[None]]) for one in (products, both, opposite))
    sizes = np.append(sizes, sizes.sum())
    squares = np.einsum("lkk->lk", products)
    moved = np.sqrt(squares / np.maximum(sizes, 1e-30)[:, None]).T
    agreement, conflicts = {}, {}
    for one, other in combinations(range(len(others)), 2):
        lengths = np.sqrt(squares[:, one] * squares[:, other])
        # where neither moved there is nothing to compare
        agreement[one, other] = products[:, one, other] / np.where(lengths > 0, lengths, np.nan)
        conflicts[one, other] = opposite[:, one, other] / np.where(both[:, one, other] > 0, both[:, one, other], np.nan)
    return layers, moved, agreement, conflicts


def _group(name: str) -> str:
    number = layer_of(name)
    return f"layer {number}" if number is not None else "embeddings" if EMBEDDINGS.search(name) else "after"


def _verdict(cosine: float | None, agreement: float | None) -> str:
    if cosine is not None and cosine < LEAST_COSINE:
        return "not from one base: a merge is mostly noise"
    if agreement is None:
        return "can be merged"
    if agreement < -NEARLY_SQUARE:
        return "pull apart: expect losses; try ties, or seek weights"
    return "promising: the same direction" if agreement > NEARLY_SQUARE else "can be merged: other directions"


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _to_choose(one: Checkpoint, other: Checkpoint) -> str:
    """Return the options without which merge would refuse the pair."""
    lines = " ".join(differences(one, other, MergeOptions()))
    options = [option for option in ("`prompts_from=N`", "`length_from=N`") if option in lines]
    return f" (with {' and '.join(options)})" if options else ""


def short_names(names: Sequence[str]) -> list[str]:
    """Return the last parts of paths, where those tell the models apart."""
    short = [Path(name).name or name for name in names]
    return short if len(set(short)) == len(short) else list(names)


def _describe(one: Checkpoint) -> ModelDescription:
    with_modules = (one.folder / "modules.json").is_file()
    floats = [one.tensors[key] for key in floats_of(one)]
    return ModelDescription(
        one.name,
        sum(count_of(tensor) for tensor in floats),
        ", ".join(sorted({tensor.dtype for tensor in floats})),
        ", ".join(kind for kind, _ in modules_of(one.folder)) if with_modules else "-",
        ", ".join(pooling_of(path) for kind, path in modules_of(one.folder) if kind == "Pooling")
        if with_modules
        else "-",
        declared_length(one.folder),
        prompts_of(one),
        tokenizer_hash(transformer_folder(one.folder)),
    )
