"""Merge models into a new folder, or check what a merge would do, or whether one was done as its folder says."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

from bge_cocktail.core.errors import CocktailError, DataError, UsageError
from bge_cocktail.core.outputs import (
    new_folder,
    read_object,
    refuse_to_replace,
    require_space,
    scratch_folder,
    write_json,
)
from bge_cocktail.core.progress import progress
from bge_cocktail.core.runs import RECIPE_FILE, RUN_FILE, describe_run
from bge_cocktail.data.record import Record
from bge_cocktail.merging.checkpoints import Checkpoint, close, hash_of
from bge_cocktail.merging.compatible import sampled_cosine
from bge_cocktail.merging.methods import TILE, merge_methods
from bge_cocktail.merging.plan import Plan
from bge_cocktail.merging.recipe import Recipe, expand, read_recipe, to_toml
from bge_cocktail.merging.resolve import MergeContext, resolve
from bge_cocktail.merging.tensors import ITEM_BYTES, WeightsFile, count_of
from bge_cocktail.merging.weights import Objective, WeightsResult
from bge_cocktail.merging.write import contents, describe_merge, output_bytes, write_model, write_settings
from bge_cocktail.models.card import Parent, write_card
from bge_cocktail.models.folder import is_classifier
from bge_cocktail.options import EncodeOptions, MergeOptions

if TYPE_CHECKING:
    from bge_cocktail.merging.objective import Scorer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge gave.

    Attributes:
        folder: The merged model.
        models: The models, as they were named.
        weights: The weight of each; of sum 1, but for methods that add up task vectors.
        losses: The loss of each on the examples, where weights came from losses.
        found: All that the search for weights saw.
    """

    folder: Path
    models: tuple[str, ...]
    weights: tuple[float, ...]
    losses: tuple[float, ...] = ()
    found: WeightsResult = field(default_factory=lambda: WeightsResult(()))


def merge(
    models: Sequence[str | Path] | Recipe,
    output: Path,
    options: MergeOptions | None = None,
    *,
    examples: Sequence[Record] = (),
    own_examples: Sequence[Sequence[Record]] = (),
    encoding: EncodeOptions | None = None,
    score: Scorer | None = None,
    make_objective: Callable[[Plan, Path], Objective] | None = None,
    more_inputs: Mapping[str, str] | None = None,
    draw: Callable[[WeightsResult, Path], None] | None = None,
    overwrite: bool = False,
) -> Merged:
    """Merge models of the same form.

    Tensors are streamed in tiles: memory doesn't grow with the size or number of models, and torch is imported only if
    something must be embedded. All but the tensors (tokenizer, prompts, configuration) is the first model's.

    Args:
        models: Folders or hub names, or a recipe, which holds them and the options.
        output: The folder to write, in the portable layout.
        options: The method, its parameters, and the weights or how to find them.
        examples: Records with negatives, for weights or methods that look at data.
        own_examples: For each model records of what it was tuned on, for methods that measure each model; without,
            all are measured on the same examples.
        encoding: How the texts of the examples are embedded.
        score: Judges a merge on tasks, for weights that are searched; without it, the loss on the examples does.
        make_objective: Makes what weights are judged by, from the merge and a folder for scratch files, where the
            models are no encoders; see `merge_classifiers`.
        more_inputs: What else the result depends on, by name and hash, for run.json.
        draw: Writes pictures of what the search saw into the new folder.
        overwrite: Replace an older output of this tool.

    Raises:
        UsageError: Options that don't fit each other, an output that exists or is an input.
        DataError: Models that don't fit together; the message lists what differs.
    """
    started = time.monotonic()
    recipe = as_recipe(models, options)
    with open_context(examples, encoding, score, make_objective, own_examples) as context:
        plan, result = resolve(recipe, context, lambda plan: _check_output(plan, output, overwrite))
        if merge_methods.trait(plan.options.method, "for_tasks") and not is_classifier(plan.checkpoints[0].folder):
            log.warning(
                "%s is made for models of different tasks with their heads; for siblings, such as encoders of one "
                "base, a comparison (arXiv:2511.21437) finds that such methods don't help: judge linear beside it",
                plan.options.method,
            )
        size = output_bytes(plan.checkpoints[0], plan.options)
        with new_folder(output, overwrite=overwrite) as new:
            with one_thread(), progress(f"merging {len(plan.checkpoints)} models", size) as advance:
                write_model(plan, new, advance)
            if draw is not None:
                draw(result, new)
            (new / RECIPE_FILE).write_text(to_toml(recipe), encoding="utf-8")
            description = _describe(recipe, plan, result, more_inputs or {}, time.monotonic() - started)
            folders = {checkpoint.name: checkpoint.folder for checkpoint in _every(plan)}
            parents = [Parent(name, folders[name]) for name in recipe.all_names() if name in folders]
            write_card(new, output.name, describe_merge(recipe, result), parents=parents, relation="merge")
            write_json(new / RUN_FILE, description)
    return Merged(output, recipe.names(), tuple(result.weights), tuple(result.losses), result)


class MergePlan(TypedDict):
    """What a merge would do. Weights are numbers, or say how they are found."""

    models: str
    base: NotRequired[str]
    method: str
    weights: list[float] | str
    checks: str
    tensors: int
    megabytes_read: float
    megabytes_written: float
    buffer_megabytes: float
    seconds_about: float
    seconds_more: NotRequired[str]
    output: str


def plan_merge(recipe: Recipe, output: Path, *, overwrite: bool = False) -> MergePlan:
    """Return what a merge would read and write; everything is checked but the numbers, and nothing is written.

    Raises:
        UsageError, DataError: As `merge` would.
    """
    with open_context((), None, None) as context:
        plan, result = resolve(recipe, context, lambda plan: _check_output(plan, output, overwrite), find=False)
        every = [*plan.checkpoints, *([plan.base] if plan.base else [])]
        read = sum(
            count_of(tensor) * ITEM_BYTES[tensor.dtype]
            for checkpoint in every
            for tensor in checkpoint.tensors.values()
        )
        size = output_bytes(plan.checkpoints[0], plan.options)
        rows = len(plan.checkpoints) + (plan.base is not None)
        planned = {
            "models": ", ".join(recipe.names()),
            **({"base": recipe.options.base} if recipe.options.base is not None else {}),
            "method": plan.options.method,
            "weights": list(result.weights) if result.weights else f"'{plan.options.weights}', found when merging",
            "checks": _checks(plan),
            "tensors": len(plan.checkpoints[0].tensors),
            "megabytes_read": round(read / 1e6, 1),
            "megabytes_written": round(size / 1e6, 1),
            "buffer_megabytes": round(4 * TILE * (rows + 2) / 1e6, 1),
            "seconds_about": round(_seconds(plan, read, size), 1),
            **({} if result.weights else {"seconds_more": "to find weights; that depends on examples and tasks"}),
            "output": str(output),
        }
        return cast("MergePlan", planned)


def as_recipe(models: Sequence[str | Path] | Recipe, options: MergeOptions | None) -> Recipe:
    """Models and options as a recipe."""
    if isinstance(models, Recipe):
        if options is not None:
            raise UsageError("a recipe holds its options; give no others beside it")
        return models
    return Recipe(tuple(expand(models)), options or MergeOptions())


@contextmanager
def one_thread() -> Iterator[None]:
    """Let numpy compute on one thread: sums come out the same on any machine, and small products are quicker."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        yield


@contextmanager
def open_context(
    examples: Sequence[Record],
    encoding: EncodeOptions | None,
    score: Scorer | None,
    make_objective: Callable[[Plan, Path], Objective] | None = None,
    own_examples: Sequence[Sequence[Record]] = (),
) -> Iterator[MergeContext]:
    """What merges are made with; its files are closed, and what it wrote is removed, at the end."""
    with scratch_folder() as scratch:
        own = tuple(tuple(one) for one in own_examples)
        context = MergeContext(scratch, tuple(examples), encoding or EncodeOptions(), score, make_objective, own)
        try:
            yield context
        finally:
            for checkpoint in context.opened:
                close(checkpoint)


def _check_output(plan: Plan, output: Path, overwrite: bool) -> None:
    refuse_to_replace(
        output, overwrite, [folder.resolve() for checkpoint in _every(plan) for folder in checkpoint.origins]
    )
    require_space(output.parent, output_bytes(plan.checkpoints[0], plan.options))


def _checks(plan: Plan) -> str:
    first = plan.checkpoints[0]
    cosines = [sampled_cosine(first, other, plan.options) for other in plan.checkpoints[1:]]
    cosines_shown = ", ".join(f"{cosine:.3f}" for cosine in cosines if cosine is not None)
    return "same form, tokenizer, modules, prompts, length" + (
        f"; cosine to the first: {cosines_shown}" if cosines_shown else ""
    )


def _every(plan: Plan) -> list[Any]:
    """Return all models that are read, those of inner merges too."""
    checkpoints, todo = [], [*plan.checkpoints, *([plan.base] if plan.base else [])]
    while todo:
        one = todo.pop()
        checkpoints.append(one)
        todo += one.parts
    return checkpoints


def _describe(
    recipe: Recipe, plan: Plan, result: WeightsResult, more_inputs: Mapping[str, str], seconds: float
) -> dict[str, Any]:
    described: list[dict[str, Any]] = [
        {"model": name, "weight": weight, **({"recipe": one.made, **_seen(one)} if isinstance(model, Recipe) else {})}
        for name, model, weight, one in zip(
            recipe.names(), recipe.models, result.weights, plan.checkpoints, strict=True
        )
    ]
    for one, value in zip(described[len(described) - len(result.losses) :], result.losses, strict=True):
        one["loss"] = value
    inputs = input_hashes(recipe, plan)
    more = {"weights_for": dict(result.weights_for)} if result.weights_for else {}
    return describe_run(
        "merge",
        options=recipe.options.model_dump(mode="json"),
        inputs={**inputs, **more_inputs},
        seconds=seconds,
        models=described,
        **more,
        **({"scale": result.scale} if result.scale is not None else {}),
        **({"method": result.method} if result.method else {}),
        **({"trials": list(result.trials)} if result.trials else {}),
        **({"note": result.note} if result.note else {}),
    )


def _seen(inner: Checkpoint) -> dict[str, Any]:
    """Return what the search for an inner merge's weights saw."""
    result: WeightsResult | None = inner.found
    if result is None:
        return {}
    more = {"losses": list(result.losses), "trials": list(result.trials), "note": result.note}
    return {name: value for name, value in more.items() if value}


def input_hashes(recipe: Recipe, plan: Plan) -> dict[str, str]:
    """Return what the models of a merge hold, by name."""
    inputs: dict[str, str] = {}
    for name, one in zip(recipe.names(), plan.checkpoints, strict=True):
        _put(inputs, name, hash_of(one))
    if plan.base is not None:
        _put(inputs, f"base {plan.base.name}", hash_of(plan.base))
    for checkpoint in _every(plan):  # what inner merges are made of
        if not any(checkpoint is other for other in (*plan.checkpoints, plan.base)):
            _put(inputs, checkpoint.name, hash_of(checkpoint))
    return inputs


def _put(inputs: dict[str, str], name: str, value: str) -> None:
    """Add an input; others of the same name and another content get a number."""
    number, known = 1, name
    while inputs.get(known, value) != value:
        number += 1
        known = f"{name} ({number})"
    inputs[known] = value


def _seconds(plan: Plan, read: int, written: int) -> float:
    """Return an estimate from what this machine reads in a moment."""
    source = next((file for checkpoint in plan.checkpoints for file in checkpoint.sources), None)
    if source is None:
        return 0.0
    view = memoryview(bytearray(min(1 << 24, source.path.stat().st_size)))
    started = time.monotonic()
    source.peek(0, view)
    speed = len(view) / max(time.monotonic() - started, 1e-6)
    passes = {"linear": 1, "task-arithmetic": 1, "ties": 4}.get(plan.options.method, 2)
    return (passes * read + 2 * written) / speed + 0.3


class Verified(TypedDict):
    """What was compared with a merge that was done again; `identical` is always true, for anything else raises."""

    output: str
    inputs: str
    files_compared: int
    bytes_compared: int
    identical: bool


def verify_merge(
    folder: Path,
    *,
    examples: Sequence[Record] = (),
    own_examples: Sequence[Sequence[Record]] = (),
    encoding: EncodeOptions | None = None,
) -> Verified:
    """Merge again by the recipe and the weights that a folder records, and compare every byte; nothing is written.

    Args:
        folder: An output of `merge`.
        examples, own_examples: For methods that look at data; weights that were found are not sought again.
        encoding: How examples are embedded for that.

    Returns:
        What was compared.

    Raises:
        DataError: The folder was not made by a merge, or an input is no longer what it was.
        CocktailError: The weights are others.
    """
    try:
        recipe = read_recipe(folder / RECIPE_FILE)
        recorded = _recorded(folder, recipe)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError) as error:
        raise DataError(f"{folder} was not made by bge-cocktail merge: {error}") from None
    with open_context(examples, encoding, None, None, own_examples) as context, one_thread():
        plan, _ = resolve(recipe, context, recorded=recorded)
        for name, now in input_hashes(recipe, plan).items():
            if recorded["inputs"].get(name) != now:
                raise DataError(f"{name} is no longer what it was when {folder} was merged")
        weights = [_compare(plan, folder, file) for file in plan.checkpoints[0].files]
        others = _compare_settings(plan, folder, context.scratch / "settings")
    return {
        "output": str(folder),
        "inputs": "unchanged",
        "files_compared": len(weights) + len(others),
        "bytes_compared": sum(weights) + sum(others),
        "identical": True,
    }


def _recorded(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Return what run.json says of a merge, as far as it is needed to do it again.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: It isn't what a merge writes.
    """
    content = read_object(folder / RUN_FILE)
    if content["command"] != "merge":
        raise ValueError(f"it was made by '{content['command']}'")
    _check_record(content, recipe)
    return {**content, "inputs": {str(name): str(value) for name, value in content["inputs"].items()}}


def _check_record(record: dict[str, Any], recipe: Recipe) -> None:
    if len(record["models"]) != len(recipe.models):
        raise ValueError(f"{RUN_FILE} and {RECIPE_FILE} hold different numbers of models")
    for weights in ([model["weight"] for model in record["models"]], *record.get("weights_for", {}).values()):
        if not all(isinstance(weight, int | float) for weight in weights):
            raise ValueError(f"{RUN_FILE}: weights that are no numbers")
    if not isinstance(record.get("scale", 1.0), int | float):
        raise ValueError(f"{RUN_FILE}: a scale that is no number")
    for one, model in zip(record["models"], recipe.models, strict=True):
        if isinstance(model, Recipe):
            _check_record(one["recipe"], model)


def _compare_settings(plan: Plan, folder: Path, scratch: Path) -> list[int]:
    """Return all that is no weight: written again and compared."""
    scratch.mkdir()
    write_settings(plan, scratch)
    sizes = []
    for path in sorted(path for path in scratch.rglob("*") if path.is_file()):
        there = folder / path.relative_to(scratch)
        if not there.is_file() or there.read_bytes() != path.read_bytes():
            raise CocktailError(f"{there} is not what its recipe gives")
        sizes.append(path.stat().st_size)
    return sizes


def _compare(plan: Plan, folder: Path, file: str) -> int:
    path = folder / file
    if not path.is_file():
        raise CocktailError(f"{path} is missing")
    there, place = WeightsFile(path), 0
    try:
        for content in contents(plan, file):
            seen = bytearray(len(content))
            there.peek(place, memoryview(seen))
            if seen != bytearray(content):
                raise CocktailError(f"{path} is not what its recipe gives: it differs after {place:,} bytes")
            place += len(content)
    finally:
        there.close()
    if path.stat().st_size != place:
        raise CocktailError(f"{path} has {path.stat().st_size:,} bytes, its recipe gives {place:,}")
    return place
