"""From a recipe to a merge that is checked and has its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from bge_cocktail.errors import UsageError
from bge_cocktail.hub import model_folder
from bge_cocktail.labels import is_classifier
from bge_cocktail.layout import refuse_unportable
from bge_cocktail.merging.adapters import is_adapter
from bge_cocktail.merging.bridge import bridged_method, is_bridged, merge_by_mergekit, mergekit_command
from bge_cocktail.merging.checkpoints import Checkpoint
from bge_cocktail.merging.checks import check_numbers
from bge_cocktail.merging.group_weights import GroupWeights, group_weights
from bge_cocktail.merging.heads import fit_heads
from bge_cocktail.merging.methods import merge_methods
from bge_cocktail.merging.nested import as_checkpoint
from bge_cocktail.merging.opening import is_plain_encoder, open_model
from bge_cocktail.merging.origin import warn_of_other_origins
from bge_cocktail.merging.plan import Plan, check_method, is_excluded, normalises, takes, with_weights
from bge_cocktail.merging.recipe import Recipe
from bge_cocktail.merging.tasting import ModelTasting, Score
from bge_cocktail.merging.weights import Found, Tasting, check_weights, data_of, find_weights, given_weights, weightings
from bge_cocktail.merging.writing import written_keys
from bge_cocktail.options import Encoding, Merging
from bge_cocktail.records import Record


@dataclass
class Kitchen:
    """What merges are made with.

    Attributes:
        scratch: A folder for what can't be held.
        examples: For weights and methods that look at data.
        encoding: How texts are embedded.
        score: Judges merges on tasks.
        taste: Makes what answers weightings, where that is not an encoder's loss on examples or its score.
        opened: The models whose files are open.
    """

    scratch: Path
    examples: tuple[Record, ...]
    encoding: Encoding
    score: Score | None
    taste: Callable[[Plan, Path], Tasting] | None = None
    opened: list[Checkpoint] = field(default_factory=list)


def prepare(
    recipe: Recipe,
    kitchen: Kitchen,
    check: Callable[[Plan], None] = lambda _: None,
    *,
    find: bool = True,
    recorded: Mapping[str, Any] | None = None,
) -> tuple[Plan, Found]:
    """Open the models of a recipe, refuse what can't be merged, and find the weights.

    Args:
        recipe: How to merge.
        kitchen: What it is made with.
        check: Looks at the merge before weights are sought, which may take long.
        find: Whether weights that must be sought are.
        recorded: The weights that were found before, as run.json holds them; nothing is sought then.

    Returns:
        The merge, and the weights (none if they were not sought).

    Raises:
        UsageError, DataError: With what is wrong.
    """
    options = recipe.options
    _check_options(options)
    check_weights(options)
    if is_bridged(options.method):
        bridged_method(options.method)
        mergekit_command()
    else:
        check_method(options, recipe.models)
    check_numbers(options, len(recipe.models))
    if find and recorded is None:
        _need_data(options, kitchen)
    _refuse_too_few(recipe)
    inner = [one.get("recipe") for one in recorded["models"]] if recorded else [None] * len(recipe.models)
    first = _open(recipe.models[0], options.pooling, kitchen, find, recorded=inner[0])
    headed = is_classifier(first.folder)
    open_next = partial(_open, pooling=options.pooling, kitchen=kitchen, find=find, under_head=headed)
    rest = zip(recipe.models[1:], inner[1:], strict=True)
    checkpoints = (first, *(open_next(model, recorded=known) for model, known in rest))
    base = open_next(options.base) if options.base is not None else None
    fitted, base, options = fit_heads(checkpoints, base, options)
    if is_bridged(options.method) and fitted != checkpoints:
        raise UsageError(f"{options.method} merges only models with heads of one form")
    checkpoints = fitted
    _check_classifiers(checkpoints[0], options, kitchen)
    if (checkpoints[0].folder / "modules.json").is_file() and not headed:
        refuse_unportable(checkpoints[0].folder)
    warn_of_other_origins([*checkpoints, *([base] if base else [])], options)
    if is_bridged(options.method):
        return _bridged(checkpoints, base, options, kitchen, check, find)
    plan = Plan(checkpoints, base, options, _user_weights(checkpoints[0], options, len(checkpoints)))
    check(plan)
    for pattern in options.exclude:
        if not any(fnmatchcase(name, pattern) for one in checkpoints for _, name in one.tensors):
            raise UsageError(f"--exclude '{pattern}': no tensor has such a name")
    if find:
        plan = _measured(plan, kitchen)
    if recorded is not None:
        found = Found(
            [one["weight"] for one in recorded["models"]],
            weights_for=recorded.get("weights_for", {}),
            scale=recorded.get("scale"),
        )
        return with_weights(plan, found.weights, found.weights_for, found.scale), found
    if not find and isinstance(options.weights, str) and options.weights not in ("uniform", "ema"):
        return plan, Found(())
    found = find_weights(recipe.names(), options, _tasting(plan, kitchen), normalise=normalises(options))
    if options.layer_weights:
        lists = " to ".join(str(list(weights)) for weights in options.layer_weights)
        found = replace(found, note=f"by layer, from first to last: {lists}")
    return with_weights(plan, found.weights, found.weights_for, found.scale), found


def _bridged(
    checkpoints: tuple[Checkpoint, ...],
    base: Checkpoint | None,
    options: Merging,
    kitchen: Kitchen,
    check: Callable[[Plan], None],
    find: bool,
) -> tuple[Plan, Found]:
    """A merge that mergekit does: the first model with mergekit's weights, to be written as it is."""
    if isinstance(options.weights, str) and options.weights != "uniform":
        raise UsageError(f"weights '{options.weights}' are not found for {options.method}; give numbers")
    for name in ("share", "weights_for", "layer_weights", "exclude"):
        if name in options.model_fields_set:
            raise UsageError(f"--{name.replace('_', '-')} doesn't go with {options.method}")
    count = len(checkpoints)
    given = [1.0] * count if isinstance(options.weights, str) else options.weights
    weights = given_weights(given, count, normalise=False)
    as_it_is = options.model_copy(update={"method": "linear", "base": None, "exclude": []})
    plan = Plan(checkpoints, None, as_it_is, GroupWeights([1.0] + [0.0] * (count - 1), {}))
    check(plan)
    if find:
        merged = merge_by_mergekit(checkpoints, base, weights, options, kitchen.scratch)
        kitchen.opened.append(merged)
        plan = replace(plan, checkpoints=(merged, *checkpoints[1:]))
    return plan, Found(weights)


def _tasting(plan: Plan, kitchen: Kitchen) -> Tasting:
    if kitchen.taste is not None and "examples" in data_of(plan.options):
        return kitchen.taste(plan, kitchen.scratch)
    return _encoder_tasting(plan, kitchen)


def _encoder_tasting(plan: Plan, kitchen: Kitchen) -> ModelTasting:
    examples = kitchen.examples
    if examples:
        from bge_cocktail.merging.example_loss import draw_negatives

        examples = tuple(draw_negatives(examples, plan.options.negatives, plan.options.seed))
    return ModelTasting(plan, examples, kitchen.encoding, kitchen.score, kitchen.scratch)


def _measured(plan: Plan, kitchen: Kitchen) -> Plan:
    """The merge with what its method needs to know of the models, if it is one that looks at data."""
    wanted = merge_methods.trait(plan.options.method, "data")
    if not wanted:
        return plan
    from bge_cocktail.merging.measuring import measure

    plan = measure(plan, _encoder_tasting(plan, kitchen), wanted)
    kitchen.opened += plan.statistics
    return plan


def _open(
    model: str | Recipe,
    pooling: str | None,
    kitchen: Kitchen,
    find: bool,
    *,
    recorded: Mapping[str, Any] | None = None,
    under_head: bool = False,
) -> Checkpoint:
    if isinstance(model, Recipe):
        plan, found = prepare(model, kitchen, find=find, recorded=recorded)
        if not found.weights:
            plan = with_weights(plan, [1 / len(model.models)] * len(model.models), {}, None)
        if model.options.dtype != "same":
            raise UsageError(
                f"recipe '{model.name}': dtype does nothing inside another recipe, which reads it unrounded"
            )
        return as_checkpoint(model.name, plan, found)
    checkpoint = open_model(model, kitchen.scratch, pooling, under_head=under_head)
    kitchen.opened.append(checkpoint)
    return checkpoint


def _need_data(options: Merging, kitchen: Kitchen) -> None:
    """Refuse weights or a method whose data isn't there, before anything is embedded.

    Raises:
        UsageError: With the flags that give it.
    """
    looks = data_of(options)
    if "general" in looks and kitchen.score is None:
        raise UsageError(f"weights '{options.weights}' need --target and --general tasks")
    what = f"method {options.method} needs" if looks_itself(options) else f"weights '{options.weights}' need"
    if (
        "examples" in looks
        and not kitchen.examples
        and kitchen.taste is None
        and ("target" not in looks or kitchen.score is None)
    ):
        more = " (or --target tasks)" if "target" in looks else ""
        raise UsageError(f"{what} examples: a file of records with --examples{more}")


def looks_itself(options: Merging) -> bool:
    """Whether the method itself looks at examples."""
    return options.method in merge_methods and bool(merge_methods.trait(options.method, "data"))


def _check_classifiers(first: Checkpoint, options: Merging, kitchen: Kitchen) -> None:
    """Refuse data of encoders for a merge of classifiers, and the other way round; and options that do nothing."""
    classifies = is_classifier(first.folder)
    for name in ("prompts_from", "negatives", "loss_temperature", "like_lm_cocktail"):
        if classifies and name in options.model_fields_set and getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} does nothing for classifiers")
    looks = "examples" in data_of(options)
    if looks and classifies != (kitchen.taste is not None) and (kitchen.examples or kitchen.taste):
        what = "labelled texts (merge_classifiers)" if kitchen.taste is None else "records of queries and documents"
        kind = "classifier" if kitchen.taste is None else "encoder"
        raise UsageError(f"{first.name} is {'a' if kind == 'classifier' else 'an'} {kind}; its examples are {what}")
    if classifies and looks_itself(options):
        raise UsageError(f"method {options.method} measures encoders; classifiers are merged by the other methods")


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


def _user_weights(first: Checkpoint, options: Merging, models: int) -> GroupWeights:
    """The weights that the user gave for single tensors; those of all others are found later."""
    names = [key[1] for key in written_keys(first) if not is_excluded(key, options)]
    normalise = normalises(options)

    def given(weights: Sequence[float]) -> list[float]:
        return given_weights(weights, models, normalise=normalise)

    patterns = {pattern: given(weights) for pattern, weights in options.weights_for.items()}
    return group_weights(names, [], patterns, [given(weights) for weights in options.layer_weights or []])


def _check_options(options: Merging) -> None:
    """Refuse options that would do nothing.

    Raises:
        UsageError: With the methods or weightings that they belong to.
    """
    users: dict[str, list[str]] = {}
    chosen: set[str] = set()
    tables: tuple[tuple[Any, Any], ...] = ((merge_methods, options.method), (weightings, options.weights))
    for table, mine in tables:
        for name in table:
            for option in takes(table[name]):
                users.setdefault(option, []).append(name)
                if name == mine:
                    chosen.add(option)
    if is_bridged(options.method):
        chosen |= {"scale", "density"}
    looks = set(data_of(options))
    for name in ("negatives", "loss_temperature", "like_lm_cocktail"):
        if name in options.model_fields_set and "examples" not in looks:
            raise UsageError(f"--{name.replace('_', '-')} does nothing here; it goes with what looks at --examples")
    if options.like_lm_cocktail and options.weights not in ("cocktail", "relative"):
        raise UsageError("--like-lm-cocktail goes with --weights cocktail or relative")
    for name in sorted(options.model_fields_set):
        if name in users and name not in chosen and name not in ("normalise", "seed"):
            raise UsageError(f"--{name.replace('_', '-')} does nothing here; it goes with {', '.join(users[name])}")
