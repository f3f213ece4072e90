"""``bge-cocktail merge``: which models, of encoders or of classifiers, by what weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bge_cocktail.cli.command_kinds import ShortHelp
from bge_cocktail.cli.flags import (
    PATH,
    flags_from,
    format_flag,
    given_flags,
    options_from,
    overwrite_flag,
    plugin_flag,
    show,
)
from bge_cocktail.core.errors import UsageError
from bge_cocktail.options import EncodeOptions, EvaluateOptions, MergeOptions

if TYPE_CHECKING:
    from bge_cocktail.evaluating.tasks.task import Task
    from bge_cocktail.merging.merge import Merged
    from bge_cocktail.merging.recipe import Recipe


def first_classifier(recipe: Recipe) -> Path | None:
    """Return the folder of a recipe's first model, if that is a classifier."""
    from bge_cocktail.models.folder import is_classifier, model_folder

    first = recipe.models[0]
    if not isinstance(first, str):
        return first_classifier(first)
    folder = model_folder(first)
    return folder if is_classifier(folder) else None


def merge_with_heads(
    recipe: Recipe,
    classifier: Path,
    output: Path,
    examples: Path | None,
    own_examples: tuple[Path, ...],
    split: str,
    encoding: dict[str, Any],
    overwrite: bool,
) -> Merged:
    """Merge classifiers.

    Args:
        recipe: How.
        classifier: The folder of the first model.
        output: The folder to write.
        examples: Labelled texts: a file, or a folder with splits.
        own_examples: Those of each model's own task, whatever their labels.
        split: Which of those.
        encoding: The flags that were given of how texts are embedded.
        overwrite: Replace an older output.

    Raises:
        UsageError: Flags that do nothing for classifiers.
        DataError: Labels that the classifier doesn't have.
    """
    from bge_cocktail.core.runs import hash_path
    from bge_cocktail.data.labelled import number_labels
    from bge_cocktail.data.sources import Source
    from bge_cocktail.training.classifier.data import read_split
    from bge_cocktail.training.classifier.merge import merge_classifiers
    from bge_cocktail.training.classifier.model import read_config

    idle = next((name for name in encoding if name != "device"), None)
    if idle is not None:
        raise UsageError(f"--{idle.replace('_', '-')} does nothing here: classifiers have no prompts and no embeddings")
    texts, own = None, []
    if examples is not None or own_examples:
        settings = read_config(classifier)
        own = [read_split(Source(str(path), split=split), settings.clean) for path in own_examples]
    if examples is not None:
        rows = read_split(Source(str(examples), split=split), settings.clean)
        texts = number_labels(rows, settings.labels, settings.multi_label, str(examples))
    return merge_classifiers(
        recipe,
        output,
        examples=texts,
        own_texts=[[text for text, _, _ in rows] for rows in own],
        device=encoding.get("device", "auto"),
        more_inputs={f"{path} ({split})": hash_path(path) for path in _files(examples, own_examples)},
        overwrite=overwrite,
    )


@click.command(
    "merge",
    cls=ShortHelp,
    finer=(
        *("weights_for", "density_for", "own_examples", "split", "general_split", "verify", "plugin_options"),
        *("output_format", "cache", "max_length"),
    ),
)
@click.argument("models", nargs=-1)
@click.option(
    "-o", "--output", type=PATH, required=True, help="The folder to write, or with --verify the one to check."
)
@click.option(
    "-r", "--recipe", "recipe_file", type=PATH, help="A recipe in TOML (or mergekit's YAML) in place of MODELS."
)
@click.option(
    "--weights-for",
    "weights_for",
    nargs=2,
    multiple=True,
    metavar="PATTERN WEIGHTS",
    help="Other weights for tensors of such names: 'encoder.layer.[0-5].*' 0.3,0.7. May be given again.",
)
@click.option(
    "--density-for",
    "density_for",
    nargs=2,
    multiple=True,
    metavar="PATTERN DENSITIES",
    help="Other densities for tensors of such names, one for each model: '*' 0.5,0.2. May be given again.",
)
@click.option(
    "--examples",
    type=PATH,
    help="Records with negatives, for weights and methods that look at data; for classifiers, labelled texts.",
)
@click.option(
    "--own-examples",
    type=PATH,
    multiple=True,
    help="Records (for classifiers, labelled texts) of what a model was tuned on, one file for each model in their "
    "order: for methods that measure each model (regmean, regmean++, fisher).",
)
@click.option("--target", type=PATH, multiple=True, help="A task to get better at, for weights that are searched.")
@click.option("--general", type=PATH, multiple=True, help="A task not to get worse at, for weights pareto.")
@click.option(
    "--split",
    default="dev",
    show_default=True,
    help="The split of those tasks, and of labelled examples, that is looked at; keep another one to judge the result.",
)
@click.option("--general-split", help="The split of the general tasks, if it is another one.")
@click.option("--dry-run", is_flag=True, help="Check the models and print the plan; write nothing.")
@click.option("--verify", is_flag=True, help="Merge again by the recipe in the output folder, and compare all bytes.")
@overwrite_flag
@format_flag
@plugin_flag
@flags_from(MergeOptions, EncodeOptions)
def command(
    models: tuple[str, ...],
    output: Path,
    recipe_file: Path | None,
    weights_for: tuple[tuple[str, str], ...],
    density_for: tuple[tuple[str, str], ...],
    examples: Path | None,
    own_examples: tuple[Path, ...],
    target: tuple[Path, ...],
    general: tuple[Path, ...],
    split: str,
    general_split: str | None,
    dry_run: bool,
    verify: bool,
    overwrite: bool,
    output_format: str,
    **flags: Any,
) -> None:
    """Merge models of the same form into one.

    MODELS are folders, hub names or LoRA adapters. With --share, the first keeps that share and the others divide the
    rest: merge TUNED BASE --share 0.5 is LM-Cocktail's cocktail of 2. A folder of checkpoints (checkpoint-100, ...)
    stands for all of them, oldest first. What is no weight (tokenizer, prompts, configuration) is the first model's.
    A classifier first: the others may be encoders or have other labels, and take part under its head.
    """
    from bge_cocktail.merging.merge import merge, plan_merge
    from bge_cocktail.merging.recipe import Recipe, expand, read_recipe
    from bge_cocktail.report.text import text_table

    if verify:
        patterns = weights_for or density_for
        if models or recipe_file or given_flags(MergeOptions, flags) or patterns or target or general or dry_run:
            raise UsageError("--verify takes the recipe from the output folder; give only -o FOLDER (and --examples)")
        _verify(output, examples, own_examples, options_from(EncodeOptions, flags), output_format)
        return
    for name, pairs in (("weights_for", weights_for), ("density_for", density_for)):
        if pairs:
            flags[name] = {pattern: numbers.split(",") for pattern, numbers in pairs}
    if (recipe_file is None) == (not models):
        raise UsageError("give either MODELS or a recipe with -r FILE")
    options = options_from(MergeOptions, flags)
    if recipe_file is not None:
        recipe = read_recipe(recipe_file, given_flags(MergeOptions, flags))
    else:
        recipe = Recipe(tuple(expand(models)), options)
    _refuse_unused(recipe, examples, own_examples, target, general)
    if dry_run:
        plan = plan_merge(recipe, output, overwrite=overwrite)
        rows = [[name.replace("_", " "), str(value)] for name, value in plan.items()]
        show(plan, text_table(("plan", ""), rows), output_format)
        return
    classifier = first_classifier(recipe)
    if classifier is not None:
        if target or general:
            raise UsageError("--target and --general judge encoders; a merge of classifiers looks at --examples")
        merged = merge_with_heads(
            recipe, classifier, output, examples, own_examples, split, given_flags(EncodeOptions, flags), overwrite
        )
    else:
        encoding = options_from(EncodeOptions, flags)
        tasks = _open(target, general)
        merged = merge(
            recipe,
            output,
            examples=_records(examples),
            own_examples=[_records(path) for path in own_examples],
            encoding=encoding,
            score=_score(tasks, split, general_split),
            more_inputs=_more_inputs(encoding, _files(examples, own_examples), tasks),
            draw=_draw(target, general),
            overwrite=overwrite,
        )
    _show_merged(merged, output, output_format)


def _verify(
    output: Path,
    examples: Path | None,
    own_examples: tuple[Path, ...],
    encoding: EncodeOptions,
    output_format: str,
) -> None:
    from bge_cocktail.merging.merge import verify_merge
    from bge_cocktail.models.folder import is_classifier

    if (examples is not None or own_examples) and is_classifier(output):
        raise UsageError(
            "--verify goes by the recorded weights of classifiers; leave --examples and --own-examples out"
        )
    own = [_records(path) for path in own_examples]
    checked = verify_merge(output, examples=_records(examples), own_examples=own, encoding=encoding)
    show(checked, "\n".join(f"{name}: {value}" for name, value in checked.items()), output_format)


def _show_merged(merged: Merged, output: Path, output_format: str) -> None:
    """Print each model's weight, and its loss where weights came from losses; and what was tried."""
    from bge_cocktail.report.text import text_table

    described = [
        {"model": model, "weight": weight} for model, weight in zip(merged.models, merged.weights, strict=True)
    ]
    # with a share, the first model was not judged
    for model, loss in zip(described[len(described) - len(merged.losses) :], merged.losses, strict=True):
        model["loss"] = loss
    header = ["model", "weight", *(["loss"] if merged.losses else [])]
    rows = [[_cell(model.get(name, "")) for name in header] for model in described]
    text = "\n\n".join([text_table(header, rows), *_trials(merged.found), *_note(merged.found)])
    found = {"note": merged.found.note, "trials": merged.found.trials}
    found |= {"method": merged.found.method} if merged.found.method else {}
    show(
        {"output": str(output), "models": described, **found},
        text,
        output_format,
        output,
        _next_command(output, merged.models),
    )


def _next_command(output: Path, models: Sequence[str]) -> tuple[object, ...]:
    from bge_cocktail.models.folder import is_classifier

    if is_classifier(output):
        return ("classify", "evaluate", output, "DATA", "-o", "FOLDER")
    # the last model is mostly the base, which the others are compared with
    return ("evaluate", *reversed(models), output, "--target", "DATA", "--general", "GENERAL", "-o", "FOLDER")


def _files(examples: Path | None, own_examples: tuple[Path, ...]) -> list[Path]:
    return [*([examples] if examples is not None else []), *own_examples]


def _records(examples: Path | None) -> Any:
    if examples is None:
        return ()
    from bge_cocktail.data.record_files import read_records

    return read_records(examples)


def _open(target: tuple[Path, ...], general: tuple[Path, ...]) -> list[Task]:
    if not target and not general:
        return []
    from bge_cocktail.evaluating.evaluate import open_tasks

    return open_tasks(target, general)


def _score(tasks: Sequence[Task], split: str, general_split: str | None) -> Any:
    if not tasks:
        return None
    from bge_cocktail.evaluating.evaluate import scorer

    by_role = {role: [task for task in tasks if task.role == role] for role in ("target", "general")}
    return scorer(by_role["target"], by_role["general"], EvaluateOptions(split=split), general_split)


def _draw(target: tuple[Path, ...], general: tuple[Path, ...]) -> Callable[[Any, Path], None] | None:
    if not general:
        return None

    def draw(result: Any, folder: Path) -> None:
        from bge_cocktail.core.pictures import draw_front

        if not result.trials or result.trials[0].get("general") is None:
            return  # an inner merge was searched, not this one
        labels = [", ".join(path.resolve().name for path in paths) for paths in (target, general)]
        draw_front(result.trials, result.weights, folder / "front.png", target=labels[0], general=labels[1])

    return draw


def _more_inputs(encoding: EncodeOptions, examples: Sequence[Path], tasks: Sequence[Task]) -> dict[str, str]:
    from bge_cocktail.core.runs import hash_path, hash_value

    hashes = {str(path): hash_path(path) for path in examples}
    hashes |= {str(task.path): task.hash for task in tasks}
    embedded = encoding.what_counts()
    return {**hashes, f"embedded with {embedded}": hash_value(embedded)} if hashes else {}


def _refuse_unused(
    recipe: Any,
    examples: Path | None,
    own_examples: tuple[Path, ...],
    target: tuple[Path, ...],
    general: tuple[Path, ...],
) -> None:
    """Refuse data that nothing in the recipe looks at."""
    from bge_cocktail.core.errors import UsageError
    from bge_cocktail.merging.recipe import every_options
    from bge_cocktail.merging.resolve import looks_itself
    from bge_cocktail.merging.weights import data_of

    if own_examples and not any(looks_itself(options) for options in every_options(recipe)):
        raise UsageError("--own-examples goes with methods that measure each model: regmean, regmean++, fisher")
    wanted = {what for options in every_options(recipe) for what in data_of(options)}
    for flag, given in (("examples", examples is not None), ("target", target), ("general", general)):
        if given and flag not in wanted:
            goes = {"examples": "cocktail or relative", "target": "search or greedy", "general": "auto or pareto"}[flag]
            raise UsageError(f"--{flag} goes with weights that look at it, such as --weights {goes}")


def _trials(result: Any) -> list[str]:
    from bge_cocktail.report.text import text_table

    if not result.trials or "target" not in result.trials[0]:
        return []
    with_general = result.trials[0].get("general") is not None
    header = ["weights", "target", *(["general", ""] if with_general else [])]
    rows = []
    for trial in sorted(result.trials, key=lambda trial: -trial["target"]):
        chosen = list(trial["weights"]) == list(result.weights)
        mark = "chosen" if chosen else "front" if trial.get("on_front") else ""
        weights = " ".join([*(f"{weight:.2f}" for weight in trial["weights"]), trial.get("method", "")]).rstrip()
        rows.append([weights, _cell(trial["target"]), *([_cell(trial["general"]), mark] if with_general else [])])
    return [text_table(header, rows)]


def _note(result: Any) -> list[str]:
    return [result.note] if result.note else []


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
