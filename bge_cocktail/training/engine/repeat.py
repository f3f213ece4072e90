"""The same training many times: with other seeds or data, or with options that Optuna proposes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from bge_cocktail.core.errors import CocktailError, UsageError, how_to_install, nearest
from bge_cocktail.core.outputs import new_file, new_folder, write_json
from bge_cocktail.core.pictures import save
from bge_cocktail.core.runs import RUN_FILE, finished_key, hash_value
from bge_cocktail.training.engine.processes import refuse_several
from bge_cocktail.training.engine.run import work_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Repeated:
    """One of several trainings.

    Attributes:
        label: What results call it.
        key: That run.json of the finished training has.
        train: Trains into a folder; told whether there is something to resume from.
        result: The numbers that are compared, of the finished folder.
    """

    label: str
    key: str
    train: Callable[[Path, bool], object]
    result: Callable[[Path], dict[str, float]]


class RepeatedResult(TypedDict):
    """What trainings that differ in a seed or in their folds gave: each one's metrics, their mean and deviation."""

    runs: dict[str, dict[str, float]]
    mean: dict[str, float]
    spread: dict[str, float]
    seconds: float
    soup: NotRequired[dict[str, float]]


def repeat_training(
    runs: Mapping[str, Repeated],
    output: Path,
    what: str,
    key: str,
    describe: Callable[[Path, Sequence[Path], RepeatedResult], dict[str, Any]],
    *,
    resume: bool,
    overwrite: bool,
) -> RepeatedResult:
    """Train each run into a folder of its own, and put the results beside each other.

    What is finished when it is cut off is kept in ``<output>.unfinished`` for `resume`.

    Args:
        runs: By the names of their folders.
        output: The folder to write.
        what: What is done, in words for messages.
        key: Names all of it.
        describe: Makes run.json of the new folder, the runs' folders, and ``runs`` (the result of each), their ``mean``
            and ``spread`` (standard deviation) and ``seconds``; may write more into the new folder.
        resume: Go on with what was cut off.
        overwrite: Replace an older output of this tool.

    Returns:
        The results, as run.json has them.
    """
    started = time.monotonic()
    working = output.with_name(output.name + ".unfinished")
    with work_folder(working, what, key, resume=resume, overwrite=overwrite):
        results: dict[str, dict[str, float]] = {}
        for name, run in runs.items():
            folder = working / name
            if finished_key(folder) != run.key:
                log.info("%s", name.replace("-", " "))
                run.train(folder, finished_key(folder.with_name(name + ".unfinished")) == run.key)
            results[run.label] = run.result(folder)
        with new_folder(output, overwrite=overwrite) as new:
            folders = [working / name for name in runs]
            repeated: RepeatedResult = {
                "runs": results,
                "mean": _over(results, statistics.fmean),
                "spread": _over(results, statistics.stdev),
                "seconds": time.monotonic() - started,
            }
            described = describe(new, folders, repeated)
            write_json(new / RUN_FILE, described)
            for folder in folders:  # linked, so that nothing is lost if this fails
                shutil.copytree(folder, new / folder.name, copy_function=os.link)
        shutil.rmtree(working)
        # a describer may know more of the runs, such as their soup's scores
        return cast(
            "RepeatedResult", {name: described[name] for name in RepeatedResult.__annotations__ if name in described}
        )


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise unless there are two seeds or more, each once.

    Raises:
        UsageError: There are fewer than two, or one twice.
    """
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds: two or more different ones, got {', '.join(map(str, seeds)) or 'none'}")


def _over(results: Mapping[str, Mapping[str, float]], statistic: Callable[[list[float]], float]) -> dict[str, float]:
    names = next(iter(results.values()))
    return {name: statistic([result[name] for result in results.values()]) for name in names}


Space = Mapping[str, tuple[Any, ...]]
Report = Callable[[int, float], None]
Attempt = Callable[[Any, Path, Report], object]
"""Trains with options into a folder, and tells a report the step and the dev metric of every evaluation."""
STUDY_FILE = "study.db"
PICTURE_FILE = "search.png"


class SearchResult(TypedDict):
    """What a search tried: its trials, how much each option mattered, and the number of the best trial."""

    trials: list[dict[str, Any]]
    importance: dict[str, float]
    best: int


def search(
    output: Path,
    options: Any,
    names: Sequence[str],
    space: Space,
    attempt: Attempt,
    key: str,
    metric: str,
    trials: int,
    *,
    resume: bool,
    overwrite: bool,
) -> SearchResult:
    """Train with options that Optuna proposes, and keep the best model; see `search_options`.

    Args:
        output: The folder to write.
        options: All that isn't searched.
        names: What is searched.
        space: Where.
        attempt: One training.
        key: Of all inputs.
        metric: What the dev metric is called.
        trials: How many in all.
        resume: Go on with a search that was cut off.
        overwrite: Replace an older output of this tool.
    """
    check_names(names, space)
    try:
        import optuna
    except ImportError:
        raise UsageError(f"a search needs optuna; {how_to_install('search')}") from None
    refuse_several("`search`")
    working = output.with_name(output.name + ".search")
    with work_folder(working, "search", hash_value([key, sorted(names)]), resume=resume, overwrite=overwrite):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        optuna.logging.disable_default_handler()
        started = time.monotonic()
        study = optuna.create_study(
            study_name="search",
            storage=f"sqlite:///{working / STUDY_FILE}",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
        )
        done = _take_up(study)
        # a study that goes on draws on, and doesn't repeat itself
        study.sampler = optuna.samplers.TPESampler(seed=options.seed + done)
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial({name: getattr(options, name) for name in names if _allowed(options, space, name)})

        def objective(trial: Any) -> float:
            proposed = {name: _suggest(trial, space, name) for name in names}
            log.info(
                "trial %d: %s", trial.number + 1, ", ".join(f"{name} {value:.3g}" for name, value in proposed.items())
            )
            return _try(trial, working, options.model_copy(update=proposed), attempt)

        study.optimize(objective, n_trials=max(0, trials - done), callbacks=[_keep_best(working)])
        return _finish(study, working, output, names, metric, overwrite, time.monotonic() - started)


def check_names(names: Sequence[str], space: Space) -> None:
    """Raise unless all names are options that can be searched.

    Raises:
        UsageError: One isn't; with the nearest name.
    """
    for name in names:
        if name not in space:
            raise UsageError(f"search: no '{name}'.{nearest(name, space)}")


def _take_up(study: Any) -> int:
    """Have a trial that was cut off begin again with the options it had; how many trials are done."""
    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    tried = [trial.params for trial in done]
    for one in trials:
        if one.state.name == "RUNNING":  # killed; one that was interrupted has failed
            study.tell(one.number, state=type(one.state).FAIL)
        if one.state.name in ("RUNNING", "FAIL") and one.params and one.params not in tried:
            study.enqueue_trial(one.params)
            tried.append(one.params)
    return len(done)


def _allowed(options: Any, space: Space, name: str) -> bool:
    """Return whether the given value lies in the space."""
    kind, *values = space[name]
    value = getattr(options, name)
    if value is None:
        return False
    return values[0] <= value <= values[1] if kind == "log" else value in values


def _suggest(trial: Any, space: Space, name: str) -> Any:
    kind, *values = space[name]
    if kind == "log":
        return trial.suggest_float(name, *values, log=True)
    return trial.suggest_categorical(name, values)


def _try(trial: Any, working: Path, options: Any, attempt: Attempt) -> float:
    """Return one training; the dev metric of the checkpoint that it keeps."""
    import optuna

    evaluations = count()

    def report(step: int, value: float) -> None:
        if not step:  # nothing is learned yet: all trials are alike
            return
        # trials with other batches have other steps: the evaluations are compared in their order
        trial.report(value, next(evaluations))
        if trial.should_prune():
            raise optuna.TrialPruned

    folder = working / f"trial-{trial.number + 1}"
    try:
        attempt(options, folder, report)
    except CocktailError as error:  # such as a batch larger than the data or the memory, or a loss that is no number
        log.warning("trial %d: %s", trial.number + 1, error)
        raise optuna.TrialPruned from None
    finally:
        shutil.rmtree(folder.with_name(folder.name + ".unfinished"), ignore_errors=True)
    return float(json.loads((folder / RUN_FILE).read_text())["dev_best"])


def _keep_best(working: Path) -> Callable[[Any, Any], None]:
    """Return a callback that removes the models that are not the best."""

    def remove_worse_trials(study: Any, _trial: Any) -> None:
        try:
            best_number = study.best_trial.number + 1  # folders count from 1
        except ValueError:  # Optuna raises it while no trial is finished
            return
        for folder in working.glob("trial-*"):
            if folder.name != f"trial-{best_number}":
                shutil.rmtree(folder)

    return remove_worse_trials


def _finish(
    study: Any, working: Path, output: Path, names: Sequence[str], metric: str, overwrite: bool, seconds: float
) -> SearchResult:
    from optuna.importance import get_param_importances

    completed = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if not completed:
        raise CocktailError(f"no trial came to its end; the study is in {working}")
    varied = {name for name in names if len({trial.params[name] for trial in completed}) > 1}
    importance = {name: float(value) for name, value in get_param_importances(study).items()} if varied else {}
    table = [
        {"trial": trial.number + 1, **trial.params, "dev": trial.value, "state": trial.state.name.lower()}
        for trial in study.trials
        if trial.state.name in ("COMPLETE", "PRUNED")
    ]
    result: SearchResult = {"trials": table, "importance": importance, "best": study.best_trial.number + 1}
    best = working / f"trial-{result['best']}"
    described = json.loads((best / RUN_FILE).read_text())
    write_json(best / RUN_FILE, {**described, "search": result, "search_seconds": round(seconds, 2)})
    draw_search(table, importance, best / PICTURE_FILE, metric)
    with new_folder(output, overwrite=overwrite) as new:
        for file in best.iterdir():
            file.rename(new / file.name)
    shutil.rmtree(working)
    return result


def draw_search(trials: Sequence[dict[str, Any]], importance: dict[str, float], path: Path, metric: str) -> None:
    """Draw the dev metric of the trials, the best so far, and how much each option matters."""
    from matplotlib.figure import Figure

    complete = [(trial["trial"], trial["dev"]) for trial in trials if trial["state"] == "complete"]
    best = [max(value for _, value in complete[: place + 1]) for place in range(len(complete))]
    figure = Figure(figsize=(9, 3.4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*complete, strict=True), "o", color="#2a6fdb", label="trial")
    left.step([number for number, _ in complete], best, where="post", color="#d9622b", label="best so far")
    left.set(xlabel="trial", ylabel=f"dev {metric}")
    left.legend(frameon=False, fontsize=8)
    shown = sorted(importance.items(), key=lambda item: item[1])
    right.barh([name.replace("_", " ") for name, _ in shown], [value for _, value in shown], color="#2a6fdb")
    right.set(xlabel="importance", xlim=(0, 1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    with new_file(path) as working:
        save(figure, working, "png")
