"""From a recipe to a merge that is checked and has its weights."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.core.outputs import read_object
from bge_cocktail.core.registry import keyword_names, refuse_unknown_options
from bge_cocktail.data.record import Record
from bge_cocktail.merging.checkpoints import Checkpoint, base_of, fold_adapter, is_adapter, read_checkpoint
from bge_cocktail.merging.compatible import check_numbers, under_names_of, warn_of_other_bases
from bge_cocktail.merging.heads import fit_heads
from bge_cocktail.merging.mergekit import bridged_method, is_bridged, merge_by_mergekit, mergekit_command
from bge_cocktail.merging.methods import merge_methods
from bge_cocktail.merging.plan import (
    GroupWeights,
    Plan,
    as_checkpoint,
    check_method,
    group_weights,
    is_excluded,
    normalises,
    parameters,
    with_weights,
)
from bge_cocktail.merging.recipe import Recipe
from bge_cocktail.merging.weights import (
    Objective,
    WeightsResult,
    check_weights,
    data_of,
    find_weights,
    given_weights,
    known_weights,
    weightings,
)
from bge_cocktail.merging.write import SETTINGS, written_keys
from bge_cocktail.models.folder import architectures, is_classifier, model_folder
from bge_cocktail.models.layout import declare_pooling, refuse_unportable
from bge_cocktail.options import EncodeOptions, MergeOptions

if TYPE_CHECKING:
    from bge_cocktail.merging.data_methods import Measured
    from bge_cocktail.merging.objective import EncoderObjective, Scorer


def open_model(name: str, scratch: Path, pooling: str | None = None, *, under_head: bool = False) -> Checkpoint:
    """Open a model.

    Args:
        name: A folder or a hub name; an adapter is folded into the base that it names.
        scratch: A folder that lives as long as the checkpoint is read.
        pooling: How a plain transformers folder pools.
        under_head: Whether it comes under a classifier's head, where that makes no difference.

    Raises:
        DataError: No such model, or a broken one.
        UsageError: A plain folder of an encoder, and nobody said how it pools.
    """
    folder = model_folder(name)
    if is_adapter(folder):
        base = model_folder(base_of(folder))
        if is_adapter(base):
            raise DataError(f"{name}: its base {base} is an adapter too; fold that one into its own base first")
        return fold_adapter(name, folder, open_model(str(base), scratch, pooling, under_head=under_head))
    if is_plain_encoder(folder) and not under_head:
        if pooling is None:
            raise UsageError(
                f"{name} is a plain transformers folder (no modules.json), so its pooling is unknown; say it: "
                "`pooling=cls` (BGE and what FlagEmbedding trains), mean (E5, MiniLM) or lasttoken (decoders)"
            )
        return replace(read_checkpoint(name, _with_pooling(folder, pooling, scratch)), origins=(folder,))
    return read_checkpoint(name, folder)


def is_plain_encoder(folder: Path) -> bool:
    """Return whether a folder is of transformers' own form and has no head: an encoder, whose pooling nothing says."""
    if (folder / "modules.json").is_file() or not (folder / "config.json").is_file():
        return False
    names = architectures(read_object(folder / "config.json"), folder / "config.json")
    return not any("For" in name or "LMHead" in name for name in names)


def _with_pooling(folder: Path, pooling: str, scratch: Path) -> Path:
    """Return the same files in another folder, with the modules declared."""
    view = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=scratch))
    for path in folder.iterdir():
        if path.name == SETTINGS:
            shutil.copyfile(path, view / path.name)
        elif path.name not in ("1_Pooling", "2_Normalize"):
            (view / path.name).symlink_to(path.resolve())
    declare_pooling(view, pooling)
    return view


@dataclass
class MergeContext:
    """What merges are made with.

    Attributes:
        scratch: A folder for what can't be held.
        examples: For weights and methods that look at data.
        encoding: How texts are embedded.
        score: Judges merges on tasks.
        make_objective: Makes what answers weightings, where that is not an encoder's loss on examples or its score.
        own_examples: Those that each model is measured on, for methods that do that; without, `examples`.
        opened: The models whose files are open.
    """

    scratch: Path
    examples: tuple[Record, ...]
    encoding: EncodeOptions
    score: Scorer | None
    make_objective: Callable[[Plan, Path], Objective] | None = None
    own_examples: tuple[tuple[Record, ...], ...] = ()
    opened: list[Checkpoint] = field(default_factory=list)


def _check_recipe(recipe: Recipe) -> None:
    """Raise where options don't go together, or not with so many models; nothing is opened for it."""
    options = recipe.options
    _check_options(options)
    check_weights(options)
    if is_bridged(options.method):
        bridged_method(options.method)
        mergekit_command()
    else:
        check_method(options, recipe.models)
    check_numbers(options, len(recipe.models))
    for pattern, densities in options.density_for.items():
        if len(densities) != len(recipe.models):
            raise UsageError(f"`density_for` '{pattern}': {len(densities)} densities for {len(recipe.models)} models")
    _refuse_too_few(recipe)


def resolve(
    recipe: Recipe,
    context: MergeContext,
    check: Callable[[Plan], None] = lambda _: None,
    *,
    find: bool = True,
    recorded: Mapping[str, Any] | None = None,
) -> tuple[Plan, WeightsResult]:
    """Open the models of a recipe, refuse what can't be merged, and find the weights.

    Args:
        recipe: How to merge.
        context: What it is made with.
        check: Looks at the merge before weights are sought, which may take long.
        find: Whether weights that must be sought are.
        recorded: The weights that were found before, as run.json holds them; nothing is sought then.

    Returns:
        The merge, and the weights (none if they were not sought).

    Raises:
        UsageError, DataError: With what is wrong.
    """
    options = recipe.options
    _check_recipe(recipe)
    if find and recorded is None:
        _need_data(options, context, len(recipe.models))
    inner = [model.get("recipe") for model in recorded["models"]] if recorded else [None] * len(recipe.models)
    first = _open(recipe.models[0], options.pooling, context, find, recorded=inner[0])
    headed = is_classifier(first.folder)
    open_next = partial(_open, pooling=options.pooling, context=context, find=find, under_head=headed)
    rest = zip(recipe.models[1:], inner[1:], strict=True)
    checkpoints = (first, *(open_next(model, recorded=known) for model, known in rest))
    base = open_next(options.base) if options.base is not None else None
    if not headed:
        checkpoints = (first, *(under_names_of(first, other) for other in checkpoints[1:]))
        base = under_names_of(first, base) if base is not None else None
    fitted, base, options = fit_heads(checkpoints, base, options)
    if is_bridged(options.method) and fitted != checkpoints:
        raise UsageError(f"{options.method} merges only models with heads of one form")
    checkpoints = fitted
    _check_classifiers(checkpoints[0], options, context)
    if (checkpoints[0].folder / "modules.json").is_file() and not headed:
        refuse_unportable(checkpoints[0].folder)
    warn_of_other_bases([*checkpoints, *([base] if base else [])], options)
    if is_bridged(options.method):
        return _bridged(checkpoints, base, options, context, check, find)
    plan = Plan(checkpoints, base, options, _user_weights(checkpoints[0], options, len(checkpoints)))
    check(plan)
    for option, patterns in (("exclude", options.exclude), ("density_for", options.density_for)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for checkpoint in checkpoints for _, name in checkpoint.tensors):
                raise UsageError(f"`{option}` '{pattern}': no tensor has such a name")
    if find:
        plan = _measured(plan, context)
    if recorded is not None:
        result = WeightsResult(
            [model["weight"] for model in recorded["models"]],
            weights_for=recorded.get("weights_for", {}),
            scale=recorded.get("scale"),
            method=recorded.get("method", ""),
        )
        return with_weights(plan, result.weights, result.weights_for, result.scale, result.method), result
    if not find and isinstance(options.weights, str) and options.weights not in ("uniform", "ema"):
        return plan, WeightsResult(())
    # numbers and equal weights ask nothing, and loading what answers takes a tenth of a small merge
    asks = options.weights != "uniform" and isinstance(options.weights, str)
    objective = _objective(plan, context) if asks else cast("Objective", None)
    result = find_weights(recipe.names(), options, objective, normalise=normalises(options))
    if options.layer_weights:
        lists = " to ".join(str(list(weights)) for weights in options.layer_weights)
        result = replace(result, note=f"by layer, from first to last: {lists}")
    return with_weights(plan, result.weights, result.weights_for, result.scale, result.method), result


def _bridged(
    checkpoints: tuple[Checkpoint, ...],
    base: Checkpoint | None,
    options: MergeOptions,
    context: MergeContext,
    check: Callable[[Plan], None],
    find: bool,
) -> tuple[Plan, WeightsResult]:
    """Return a merge that mergekit does: the first model with mergekit's weights, to be written as it is."""
    if isinstance(options.weights, str) and options.weights != "uniform":
        raise UsageError(f"weights '{options.weights}' are not found for {options.method}; give numbers")
    for name in ("share", "weights_for", "layer_weights", "density_for", "exclude"):
        if name in options.model_fields_set:
            raise UsageError(f"`{name}` doesn't go with {options.method}")
    count = len(checkpoints)
    given = [1.0] * count if isinstance(options.weights, str) else options.weights
    weights = given_weights(given, count, normalise=False)
    as_it_is = options.model_copy(update={"method": "linear", "base": None, "exclude": []})
    plan = Plan(checkpoints, None, as_it_is, GroupWeights([1.0] + [0.0] * (count - 1), {}))
    check(plan)
    if find:
        merged = merge_by_mergekit(checkpoints, base, weights, options, context.scratch)
        context.opened.append(merged)
        plan = replace(plan, checkpoints=(merged, *checkpoints[1:]))
    return plan, WeightsResult(weights)


def _objective(plan: Plan, context: MergeContext) -> Objective:
    if context.make_objective is not None and "examples" in data_of(plan.options):
        return context.make_objective(plan, context.scratch)
    return _encoder_objective(plan, context)


def _encoder_objective(plan: Plan, context: MergeContext) -> EncoderObjective:
    from bge_cocktail.merging.objective import EncoderObjective, draw_negatives

    shared, *own = (
        tuple(draw_negatives(examples, plan.options.negatives, plan.options.seed)) if examples else ()
        for examples in (context.examples, *context.own_examples)
    )
    return EncoderObjective(plan, shared, context.encoding, context.score, context.scratch, own)


def _measured(plan: Plan, context: MergeContext) -> Plan:
    """Return the merge with what its method needs to know of the models, if it is one that looks at data."""
    wanted = merge_methods.trait(plan.options.method, "data")
    if not wanted:
        return plan
    from bge_cocktail.merging.data_methods import collect_statistics

    if known_weights(plan.options):
        names = [checkpoint.name for checkpoint in plan.checkpoints]
        given = find_weights(names, plan.options, _objective(plan, context), normalise=True)
        plan = with_weights(plan, given.weights, {}, None)
    objective = cast("Measured", _objective(plan, context))
    plan = collect_statistics(plan, objective, wanted)
    context.opened += plan.statistics
    return plan


def _open(
    model: str | Recipe,
    pooling: str | None,
    context: MergeContext,
    find: bool,
    *,
    recorded: Mapping[str, Any] | None = None,
    under_head: bool = False,
) -> Checkpoint:
    if isinstance(model, Recipe):
        plan, result = resolve(model, context, find=find, recorded=recorded)
        if not result.weights:
            plan = with_weights(plan, [1 / len(model.models)] * len(model.models), {}, None)
        if model.options.dtype != "same":
            raise UsageError(
                f"recipe '{model.name}': dtype does nothing inside another recipe, which reads it unrounded"
            )
        return as_checkpoint(model.name, plan, result)
    checkpoint = open_model(model, context.scratch, pooling, under_head=under_head)
    context.opened.append(checkpoint)
    return checkpoint


def _need_data(options: MergeOptions, context: MergeContext, models: int) -> None:
    """Refuse weights or a method whose data isn't there, before anything is embedded.

    Raises:
        UsageError: With the flags that give it.
    """
    looks = data_of(options)
    if "general" in looks and context.score is None:
        raise UsageError(f"weights '{options.weights}' need `target` and `general` tasks")
    if context.own_examples and looks_itself(options) and len(context.own_examples) != models:
        raise UsageError(f"{len(context.own_examples)} `own_examples` for {models} models: give one for each, in order")
    weighting = isinstance(options.weights, str) and "examples" in weightings.trait(options.weights, "data", ())
    if context.own_examples and looks_itself(options) and not weighting:
        return  # each model's own are enough
    what = f"weights '{options.weights}' need" if weighting else f"method {options.method} needs"
    if (
        "examples" in looks
        and not context.examples
        and context.make_objective is None
        and ("target" not in looks or context.score is None)
    ):
        more = " (or `target` tasks)" if "target" in looks else ""
        raise UsageError(f"{what} examples: a file of records with `examples`{more}")


def looks_itself(options: MergeOptions) -> bool:
    """Return whether the method itself looks at examples."""
    return options.method in merge_methods and bool(merge_methods.trait(options.method, "data"))


def _check_classifiers(first: Checkpoint, options: MergeOptions, context: MergeContext) -> None:
    """Refuse data of encoders for a merge of classifiers, and the other way round; and options that do nothing."""
    classifies = is_classifier(first.folder)
    for name in ("prompts_from", "negatives", "loss_temperature", "like_lm_cocktail"):
        if classifies and name in options.model_fields_set and getattr(options, name):
            raise UsageError(f"`{name}` does nothing for classifiers")
    looks = "examples" in data_of(options)
    if looks and classifies != (context.make_objective is not None) and (context.examples or context.make_objective):
        what = (
            "labelled texts (merge_classifiers)"
            if context.make_objective is None
            else "records of queries and documents"
        )
        kind = "classifier" if context.make_objective is None else "encoder"
        raise UsageError(f"{first.name} is {'a' if kind == 'classifier' else 'an'} {kind}; its examples are {what}")
    if classifies and options.method == "fisher":
        raise UsageError("method fisher measures encoders; classifiers are merged by the other methods")


def _refuse_too_few(recipe: Recipe) -> None:
    """One model alone is a merge only if something is done to it: an adapter is folded in, a pooling declared."""
    if len(recipe.models) > 1 or recipe.options.base is not None or recipe.options.dtype != "same":
        return
    only = recipe.models[0] if recipe.models else ""
    if isinstance(only, str) and only:
        folder = model_folder(only)
        if is_adapter(folder) or is_plain_encoder(folder):
            return
    raise UsageError("a merge needs at least two models (one will do if it is an adapter or a plain folder)")


def _user_weights(first: Checkpoint, options: MergeOptions, models: int) -> GroupWeights:
    """Return the weights that the user gave for single tensors; those of all others are found later."""
    names = [key[1] for key in written_keys(first) if not is_excluded(key, options)]
    normalise = normalises(options)

    def given(weights: Sequence[float]) -> list[float]:
        return given_weights(weights, models, normalise=normalise)

    patterns = {pattern: given(weights) for pattern, weights in options.weights_for.items()}
    return group_weights(names, [], patterns, [given(weights) for weights in options.layer_weights or []])


def _check_options(options: MergeOptions) -> None:
    """Refuse options that would do nothing.

    Raises:
        UsageError: With the methods or weightings that they belong to.
    """
    users: dict[str, list[str]] = {}
    chosen: set[str] = set()
    tables: tuple[tuple[Any, Any], ...] = ((merge_methods, options.method), (weightings, options.weights))
    for table, mine in tables:
        for name in table:
            for option in keyword_names(table[name]):
                users.setdefault(option, []).append(name)
                if name == mine:
                    chosen.add(option)
    functions: list[Callable[..., Any]] = [] if is_bridged(options.method) else [merge_methods[options.method]]
    if isinstance(options.weights, str):
        functions.append(weightings[options.weights])
    refuse_unknown_options(functions, MergeOptions.model_fields, options.plugin_options)
    for function in functions:
        parameters(function, options)  # a value of the wrong type is said before anything is read
    if is_bridged(options.method):
        chosen |= {"scale", "density"}
    if options.density_for and "density" not in chosen:
        raise UsageError(f"`density_for` does nothing here; it goes with {', '.join(users['density'])}")
    looks = set(data_of(options))
    for name in ("negatives", "loss_temperature", "like_lm_cocktail"):
        if name in options.model_fields_set and "examples" not in looks:
            raise UsageError(f"`{name}` does nothing here; it goes with what looks at `examples`")
    if options.like_lm_cocktail and options.weights not in ("cocktail", "relative"):
        raise UsageError("`like_lm_cocktail` goes with `weights=cocktail` or relative")
    for name in sorted(options.model_fields_set):
        if name in users and name not in chosen and name not in ("normalise", "seed"):
            raise UsageError(f"`{name}` does nothing here; it goes with {', '.join(users[name])}")
