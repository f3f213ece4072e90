"""``bge-cocktail evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bge_cocktail.cli.flags import flags_from, format_flag, options_from, output_flag, overwrite_flag, plugin_flag, show
from bge_cocktail.options import EncodeOptions, EvaluateOptions

if TYPE_CHECKING:
    from bge_cocktail.evaluating.scores import ModelScores


@click.command("evaluate")
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--target",
    multiple=True,
    metavar="[KIND:]FOLDER",
    help="A task tuned for: a BEIR folder, labelled texts, ... (clustering:FOLDER says the kind). Repeatable.",
)
@click.option("--general", multiple=True, metavar="[KIND:]FOLDER", help="A task that must not get worse. Repeatable.")
@click.option(
    "--mteb",
    multiple=True,
    metavar="NAME",
    help="A task or benchmark of mteb, or a folder judged by mteb's own code and protocol. Repeatable.",
)
@output_flag
@overwrite_flag
@format_flag
@plugin_flag
@flags_from(EvaluateOptions, EncodeOptions)
def command(
    models: tuple[str, ...],
    target: tuple[str, ...],
    general: tuple[str, ...],
    mteb: tuple[str, ...],
    output: Path,
    overwrite: bool,
    output_format: str,
    **flags: Any,
) -> None:
    """Judge models on target and general tasks.

    MODELS are folders or hub names; NAME=FOLDER gives one a name in the table.
    """
    from bge_cocktail.core.errors import UsageError
    from bge_cocktail.core.outputs import refuse_to_replace
    from bge_cocktail.evaluating.evaluate import evaluate_models, evaluation_inputs, open_tasks
    from bge_cocktail.evaluating.store import write_evaluation
    from bge_cocktail.evaluating.tasks.task import task_path
    from bge_cocktail.models.folder import model_folder
    from bge_cocktail.report.text import score_table

    evaluating = options_from(EvaluateOptions, flags)
    encoding = options_from(EncodeOptions, flags)
    named: dict[str, str] = {}
    for model in models:
        name, equals, path = model.partition("=")
        if not equals or Path(model).is_dir():
            name, path = model.rstrip("/").rsplit("/", 1)[-1], model
        if name in named:
            raise UsageError(f"two models are called '{name}'; give them names: NAME=FOLDER")
        model_folder(path)
        named[name] = path
    refuse_to_replace(output, overwrite, [*named.values(), *(task_path(one)[1] for one in (*target, *general))])
    task_list = open_tasks(target, general, others=bool(mteb))
    more = _MtebTasks(mteb, named, encoding, evaluating.split) if mteb else None

    def judge() -> list[ModelScores]:
        found = evaluate_models(named, task_list, encoding, evaluating)
        return found if more is None else more.added(found)

    options = {"evaluate": evaluating.model_dump(mode="json"), "encode": encoding.model_dump(mode="json")}
    results = write_evaluation(
        output,
        judge,
        {**options, **({"mteb": list(mteb)} if mteb else {})},
        {**evaluation_inputs(named, task_list, evaluating), **(more.inputs() if more else {})},
        task_list,
        more.copy_results if more else lambda _: None,
        overwrite=overwrite,
    )
    show({"models": [result.to_json() for result in results]}, score_table(results), output_format)


class _MtebTasks:
    """Tasks of mteb beside ours."""

    def __init__(self, names: tuple[str, ...], models: dict[str, str], encoding: EncodeOptions, split: str) -> None:
        from bge_cocktail.evaluating.mteb import open_mteb_tasks
        from bge_cocktail.models.encoder import CachedEncoder

        self._tasks = open_mteb_tasks(names, split)
        self._encoders = {name: CachedEncoder(path, encoding) for name, path in models.items()}
        self._cache = encoding.cache_dir

    def added(self, found: list[ModelScores]) -> list[ModelScores]:
        """The models' scores with those on these tasks."""
        from dataclasses import replace

        from bge_cocktail.evaluating.mteb import run_mteb

        results = []
        for one in found:
            scores = run_mteb(one.model, self._encoders[one.model], self._tasks, "general", cache_dir=self._cache)
            results.append(replace(one, scores=[*one.scores, *scores]))
        return results

    def inputs(self) -> dict[str, str]:
        """Revisions of the tasks' data."""
        return {f"mteb {task.metadata.name}": str(task.metadata.dataset["revision"]) for task in self._tasks}

    def copy_results(self, folder: Path) -> None:
        """mteb's own files, in its layout."""
        from bge_cocktail.evaluating.mteb import copy_results

        copy_results(list(self._encoders.items()), folder / "mteb", self._cache)
