"""mteb's tasks run on our encoders; results in mteb's own layout."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bge_cocktail.benchmarks.local import as_mteb_task
from bge_cocktail.benchmarks.model import MtebModel
from bge_cocktail.cache import default_cache_dir
from bge_cocktail.encoding import CachedEncoder
from bge_cocktail.errors import CocktailError, DataError, UsageError, nearest
from bge_cocktail.hub import hub_answers
from bge_cocktail.tasks import Role, Score, open_task

log = logging.getLogger(__name__)


def open_mteb_tasks(names: Sequence[str], split: str = "test") -> list[Any]:
    """The tasks that names of tasks and benchmarks, and folders of local data, stand for.

    Args:
        names: Such as ``STSBenchmark``, ``MTEB(eng, v2)`` or ``data/handbook``.
        split: Which split of local data is judged.

    Raises:
        UsageError: There is no such task or benchmark; with the nearest names.
        DataError: Broken local data.
    """
    import mteb

    known = {task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)}
    benchmarks = {one.name: one for one in mteb.get_benchmarks()}
    found: dict[str, Any] = {}
    for name in names:
        if Path(name).is_dir():
            task = as_mteb_task(open_task(name, "general"), split)
            found[task.metadata.name] = task
        elif name in benchmarks:
            found |= {task.metadata.name: task for task in benchmarks[name].tasks}
        elif name in known:
            found[name] = mteb.get_task(name)
        else:
            raise UsageError(f"mteb has no task or benchmark '{name}'.{nearest(name, [*known, *benchmarks])}")
    return list(found.values())


def run_mteb(
    name: str, encoder: CachedEncoder, tasks: Sequence[Any], role: Role, *, cache_dir: Path | None = None
) -> list[Score]:
    """Judge an encoder on tasks of mteb; what was judged before is read from mteb's result cache.

    Args:
        name: What results call the model.
        encoder: The model.
        tasks: From `open_mteb_tasks` or `as_mteb_task`.
        role: Of the tasks.
        cache_dir: Where results are kept; default: beside the embeddings.

    Returns:
        The main score of each task.

    Raises:
        DataError: A task's data are neither in the cache nor within reach.
        CocktailError: A task failed.
    """
    import mteb
    from mteb.cache import ResultCache

    model = MtebModel(name, encoder)
    cache = ResultCache(results_folder(cache_dir))
    _without_network([task for task in tasks if not task.data_loaded])
    scores = []
    for task in tasks:
        log.info("%s: %s", name, task.metadata.name)
        try:
            result = mteb.evaluate(model, task, cache=cache, show_progress_bar=False, co2_tracker=False)
        except (ConnectionError, OSError) as error:
            raise DataError(
                f"mteb's task {task.metadata.name} needs its data ({task.metadata.dataset['path']}), which are neither "
                f"in the cache nor within reach: {str(error).splitlines()[0]}"
            ) from None
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise CocktailError(f"mteb's task {task.metadata.name} failed: {error}") from error
        scores += [_score(one, task, role) for one in result.task_results]
    return scores


def results_folder(cache_dir: Path | None = None) -> Path:
    """Where mteb's results are kept."""
    return (cache_dir or default_cache_dir()) / "mteb"


def copy_results(names: Sequence[tuple[str, CachedEncoder]], output: Path, cache_dir: Path | None = None) -> None:
    """Copy the models' results, in mteb's own layout, into a folder."""
    from mteb.cache import ResultCache

    for name, encoder in names:
        meta = MtebModel(name, encoder).mteb_model_meta
        source = ResultCache(results_folder(cache_dir)).get_task_result_path("x", meta).parent
        target = ResultCache(output).get_task_result_path("x", meta).parent
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)


def _score(result: Any, task: Any, role: Role) -> Score:
    value = float(result.get_score())
    count = sum(len(subsets) for subsets in result.scores.values())
    return Score(
        task=f"mteb/{result.task_name}",
        kind="mteb",
        role=role,
        metric=str(task.metadata.main_score),
        value=value,
        interval=None,
        count=count,  # subsets: mteb keeps no number of texts
        main=True,
    )


def _without_network(tasks: Sequence[Any]) -> None:
    """Where the hub doesn't answer, have the libraries fail at once and not after minutes."""
    if not tasks or os.environ.get("HF_HUB_OFFLINE") or hub_answers():
        return
    import datasets
    from huggingface_hub import constants

    log.warning("the hub doesn't answer: mteb's tasks are taken from the cache, if they are there")
    constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True
