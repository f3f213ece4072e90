"""The frame of a training: its work folder, its run from step to step (resumed, stopped, explained), its curves."""

from __future__ import annotations

import errno
import json
import logging
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import tomli_w

from bge_cocktail.core.errors import CocktailError, UsageError
from bge_cocktail.core.outputs import require_space, write_json
from bge_cocktail.core.pictures import save
from bge_cocktail.core.runs import BAD_BATCH_FILE, RUN_FILE, finished_key
from bge_cocktail.core.version import __version__
from bge_cocktail.models.card import shown_name
from bge_cocktail.options import CommonTrainOptions
from bge_cocktail.training.engine.processes import Processes

if TYPE_CHECKING:
    from bge_cocktail.training.engine.trainer import Trainer


log = logging.getLogger(__name__)
# what is watched while an encoder is trained, and early stopping goes by
DEV_METRIC = "nDCG@10"
PRIMARY = f"dev_{DEV_METRIC}"


@contextmanager
def work_folder(working: Path, what: str, key: str, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Make the folder, or go on with it; as long as this lasts, no other process does.

    Args:
        working: The folder.
        what: What is done in it, in words for messages.
        key: Names it by its options and inputs.
        resume: Whether what is there is gone on with.
        overwrite: Whether what is there may be removed, however far it came.

    Raises:
        UsageError: What is there was made by something else, or from something else, is being worked in, or came too
            far to be removed unasked.
    """
    with _alone(working, what):
        _begin(working, what, key, resume, overwrite)
        yield


@contextmanager
def shared_work_folder(
    processes: Processes, working: Path, what: str, key: str, *, resume: bool, overwrite: bool
) -> Iterator[None]:
    """`work_folder` for several processes: the first one makes the folder, the others wait for it.

    Args:
        processes: All of them.
        working, what, key, resume, overwrite: See `work_folder`.

    Raises:
        CocktailError: A process on another machine doesn't see the folder.
    """
    with ExitStack() as held:
        with processes.first_alone():
            if processes.is_first:
                held.enter_context(work_folder(working, what, key, resume=resume, overwrite=overwrite))
            if not working.is_dir():
                raise CocktailError(
                    f"this machine doesn't see {working}, which the first one made: they need a shared disk"
                )
        yield


def _begin(working: Path, what: str, key: str, resume: bool, overwrite: bool) -> None:
    if working.exists():
        finished = finished_key(working)
        if finished is None:
            raise UsageError(f"{working} is in the way and is no unfinished {what} of bge-cocktail; remove it")
        if resume and finished != key:
            raise UsageError(
                f"{working} was made from other records, options, tasks or another model; remove it, or run without "
                "`resume`"
            )
        if not resume and not overwrite and _came_far(working):
            raise UsageError(
                f"{working} holds an unfinished {what}: `resume` goes on with it, `overwrite` begins again"
            )
        if not resume:
            log.warning("the unfinished %s in %s is begun again", what, working)
            shutil.rmtree(working)
    working.mkdir(parents=True, exist_ok=True)
    write_json(working / RUN_FILE, {"command": what, "key": key, "unfinished": True})


def _came_far(working: Path) -> bool:
    """Return whether there is anything to go on from, and no loss that was no number."""
    if (working / BAD_BATCH_FILE).is_file():
        return False
    return any(path.is_file() and path.name != RUN_FILE for path in working.rglob("*"))


@contextmanager
def _alone(working: Path, what: str) -> Iterator[None]:
    """Hold a lock beside the folder, which a killed process leaves behind unlocked.

    Raises:
        UsageError: Another process holds it.
    """
    from filelock import FileLock, Timeout

    working.parent.mkdir(parents=True, exist_ok=True)
    path = working.with_name(f".{working.name}.lock")
    lock = FileLock(path, timeout=0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a lock that is only a file
            lock.acquire()
    except Timeout:
        raise UsageError(f"another {what} is going on in {working}; choose another output, or wait") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.debug("%s has no locks, so nothing keeps two trainings apart: %s", working.parent, error)
    try:
        yield
    finally:
        with suppress(OSError):  # an open file can't be removed on every system
            path.unlink()
        lock.release()


# not every file system has locks
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
CURVES_FILE = "curves.jsonl"
PICTURE_FILE = "curves.png"


def history(state: Any, primary: str | None) -> dict[str, Any]:
    """Return what a trainer's state tells of a training: steps, the best of them, the curves.

    Args:
        state: Of the trainer.
        primary: The metric that the best step goes by, such as `PRIMARY`; None without one.

    Raises:
        CocktailError: A loss was no number.
    """
    curves = [_curve_point(entry) for entry in state.log_history if "train_runtime" not in entry]
    losses = [point["loss"] for point in curves if "loss" in point]
    if not losses or not all(math.isfinite(loss) for loss in losses):
        raise CocktailError("the loss became NaN or infinite; a lower learning rate or fp32 may help")
    developed = [point[primary] for point in curves if primary in point]
    if developed and state.best_metric is not None and state.best_metric <= developed[0]:
        log.warning(
            "tuning did not raise %s (base %.4f, best %.4f): try another learning rate%s",
            str(primary).replace("_", " ", 1),
            developed[0],
            state.best_metric,
            ", temperature or negatives" if primary == PRIMARY else "",
        )
    return {
        "steps": state.global_step,
        "best_step": state.best_global_step if developed else state.global_step,
        "dev_before": developed[0] if developed else None,
        "dev_best": state.best_metric if developed else None,
        "general": _before_and_after(curves, state.best_global_step if developed else state.global_step),
        "final_loss": losses[-1],
        "curves": curves,
    }


# times, and what the point has under other names
_LEFT_AWAY = (
    "step",
    "epoch",
    "grad_norm",
    "total_flos",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
)


def _curve_point(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return one line of the curves: step, epoch, and the losses and learning rate, or what was watched."""
    # in an order of their own: a checkpoint has sorted those before it
    values = {name.removeprefix("eval_"): value for name, value in sorted(entry.items()) if name not in _LEFT_AWAY}
    return {"step": entry["step"], "epoch": round(entry.get("epoch", 0), 4), **values}


def _before_and_after(curves: Sequence[Mapping[str, Any]], step: int) -> dict[str, tuple[float, float]]:
    """Return the scores of each general task before training, and those of the weights that are kept."""
    change: dict[str, tuple[float, float]] = {}
    for point in curves:
        for name in (name for name in point if name.startswith("general_")):
            first = change.get(name.removeprefix("general_"), (point[name], 0.0))[0]
            if point["step"] <= step:
                change[name.removeprefix("general_")] = (first, point[name])
    return change


def write_curves(curves: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write the points as JSON Lines, and a picture: losses above, below it what was watched."""
    (folder / CURVES_FILE).write_text("".join(json.dumps(point) + "\n" for point in curves))
    _draw(curves, folder / PICTURE_FILE)


def _draw(curves: Sequence[Mapping[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    watched = [name for name in dict.fromkeys(name for point in curves for name in point) if _is_watched(name)]
    figure = Figure(figsize=(7.2, 5.2 if watched else 2.8), dpi=120, layout="constrained")
    panels = [("loss", [name for name in ("loss", "dev_loss") if any(name in point for point in curves)])]
    if watched:
        panels.append(("score", watched))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (label, names) in zip(axes, panels, strict=True):
        for name in names:
            points = [(point["step"], point[name]) for point in curves if name in point]
            sparse = {"marker": "o", "markersize": 3.5} if len(points) < 60 else {}
            panel.plot(*zip(*points, strict=True), label=name.replace("_", " ", 1), linewidth=1.4, **sparse)
        panel.set_ylabel(label)
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("step")
    save(figure, path, "png")


def describe_training(base: str, run: Mapping[str, Any], defaults: CommonTrainOptions) -> list[str]:
    """Return what a model card says of how a model was tuned, as lines of Markdown.

    Args:
        base: What it was tuned from.
        run: What its run.json says.
        defaults: The options as they are by default; those that differ are shown.
    """
    count = f"{run['records']:,} records" if "records" in run else f"{run['texts']['train']:,} texts"
    if run.get("datasets"):
        count += f" of {', '.join(f'`{name}`' for name in run['datasets'])}"
    lines = [
        f"Tuned from `{shown_name(base)}` on {count}, made with bge-cocktail {__version__}: "
        f"{run['steps']:,} steps, {_kept(run)}."
    ]
    usual = defaults.model_dump(mode="json")
    metric = run["options"].get("metric") or DEV_METRIC
    measured = {
        f"dev {metric} before": run.get("dev_before"),
        f"dev {metric}": run.get("dev_best"),
        **{f"test {name}": value for name, value in (run.get("test") or {}).items() if isinstance(value, int | float)},
        "final loss": run.get("final_loss"),
    }
    rows = [(name, f"{value:.4f}") for name, value in measured.items() if value is not None]
    lines += ["", "| measured | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    changed = {name: value for name, value in run["options"].items() if value != usual.get(name)}
    if changed:
        # what lies on this machine is named without its place
        shown = {
            name: shown_name(value) if isinstance(value, str) and value else value for name, value in changed.items()
        }
        lines += ["", "## Options", "", "```toml", *tomli_w.dumps(_without_none(shown)).splitlines(), "```"]
    return lines


def _kept(run: Mapping[str, Any]) -> str:
    if averaged := run.get("averaged_steps"):
        return f"the mean of whose weights at {', '.join(f'{step:,}' for step in averaged)} this is"
    return f"of which the best was {run['best_step']:,}"


def _without_none(value: Any) -> Any:
    """Return a value without what TOML has no word for."""
    if isinstance(value, Mapping):
        return {name: _without_none(one) for name, one in value.items() if one is not None}
    return [_without_none(one) for one in value if one is not None] if isinstance(value, list) else value


def _is_watched(name: str) -> bool:
    return name.startswith(("dev_", "general_")) and name != "dev_loss"


class Interrupted(KeyboardInterrupt):
    """A training that was told to stop; the message says at which step it was saved."""


class Prepared(Protocol):
    """A training that is ready to run."""

    trainer: Trainer

    def finish(self) -> Any:
        """Return the model as it is written, once it is trained; called by all processes."""
        ...


@dataclass(frozen=True)
class Training:
    """What one kind of training is to its frame.

    Attributes:
        what: What is done, in words for messages.
        base: The folder of the model that is tuned.
        inputs: Names and hashes of what it is made of.
        key: Names it by its options and inputs.
        prepare: Makes the trainer, its checkpoints in the work folder.
        write: Writes the output from what was prepared, the finished model, what the training saw (`history`), and
            what run.json says.
        write_rows: Writes rows of the data to a file; those of a batch whose loss is no number are kept.
        keeps_start: Whether the start is the result where all later steps are worse on dev.
    """

    what: str
    base: Path
    inputs: Mapping[str, str]
    key: str
    prepare: Callable[[Path], Any]
    write: Callable[[Any, Any, dict[str, Any], dict[str, Any]], None]
    write_rows: Callable[[Sequence[int], Path], object]
    keeps_start: bool = False


def run_training(
    training: Training,
    output: Path,
    options: CommonTrainOptions,
    processes: Processes,
    *,
    resume: bool,
    overwrite: bool,
) -> Path:
    """Train in a work folder beside the output, from the last checkpoint where there is one, and write the output.

    Args:
        training: What is trained.
        output: The folder to write.
        options: How.
        processes: All that work on it; the first one writes.
        resume: Go on from the last checkpoint.
        overwrite: Replace an older output of this tool.

    Returns:
        `output`.

    Raises:
        CocktailError: An unfinished run of other inputs is in the way, the loss is no number, memory or disk ran out.
        Interrupted: SIGTERM or Ctrl-C; a checkpoint was saved.
    """
    # weights and two moments of AdamW in each of four checkpoints (three kept, one being written), and the result
    copies = 3 * max(4, options.average + 2) + 1
    require_space(output.parent, copies * sum(file.stat().st_size for file in training.base.rglob("*.safetensors")))
    started = time.monotonic()
    working = output.with_name(output.name + ".unfinished")
    with shared_work_folder(processes, working, training.what, training.key, resume=resume, overwrite=overwrite):
        prepared: Prepared = training.prepare(working)
        seen = fit(prepared.trainer, options, working, resume, training.write_rows)
        before, best = seen["dev_before"], seen["dev_best"]
        if training.keeps_start and before is not None and best is not None and best < before:
            log.warning("all steps are worse on dev than the start (%.4f), which is kept", before)
            del prepared
            prepared = training.prepare(working)
            seen |= {"best_step": 0, "dev_best": before}
            seen.pop("averaged_steps", None)
        model = prepared.finish()
        if processes.is_first:
            seconds = time.monotonic() - started
            described = {"inputs": training.inputs, "processes": processes.count, "seconds": seconds}
            training.write(prepared, model, seen, described)
            shutil.rmtree(working)
        processes.wait()
    return output


def fit(
    trainer: Trainer,
    options: CommonTrainOptions,
    working: Path,
    resume: bool,
    write_rows: Callable[[Sequence[int], Path], object],
) -> dict[str, Any]:
    """Run a trainer; the model ends with its best weights.

    Args:
        trainer: Ready to run.
        options: Patience, and what to change where memory runs out.
        working: The folder of what is unfinished; holds the checkpoints.
        resume: Go on from the last whole checkpoint.
        write_rows: Writes rows of the data to a file; those of a batch whose loss is no number are kept.

    Returns:
        What the training saw, as `history` gives it.

    Raises:
        CocktailError: The loss is no number, or memory or disk ran out.
        Interrupted: SIGTERM or Ctrl-C; a checkpoint was saved.
    """
    from safetensors import SafetensorError
    from transformers import TrainerState

    from bge_cocktail.training.engine.callbacks import StopCallback
    from bge_cocktail.training.engine.checkpoints import (
        checkpoints_in,
        had_stopped,
        last_checkpoint,
        load_weights,
        step_of,
    )
    from bge_cocktail.training.engine.trainer import explain_failure

    checkpoints = working / "checkpoints"
    last = last_checkpoint(checkpoints) if resume else None
    if resume:
        for damaged in checkpoints_in(checkpoints):
            if last is None or step_of(damaged) > step_of(last):
                log.warning("%s is cut off or damaged and is passed over", damaged)
                if trainer.is_world_process_zero():
                    shutil.rmtree(damaged)
        if last is None:
            log.warning("no whole checkpoint in %s; the training starts from the beginning", checkpoints)
    # a resumed run has judged its start already; judging it again would count against its patience
    trainer.args.eval_on_start &= last is None
    with StopCallback() as stop:
        trainer.add_callback(stop)
        try:
            if last is not None and had_stopped(last, options):
                trainer.state = TrainerState.load_from_json(str(last / "trainer_state.json"))
                load_weights(trainer.parts(), last)
            else:
                trainer.train(resume_from_checkpoint=str(last) if last else None)
        except BadLoss as error:
            bad = working / BAD_BATCH_FILE
            write_rows(error.rows, bad)
            raise CocktailError(
                f"step {trainer.state.global_step + 1}: {error}; the records of the batch are in {bad}"
            ) from None
        except (RuntimeError, SafetensorError) as error:
            explain_failure(error, trainer, options)
            raise
    state = trainer.state
    if stop.signal is not None and state.global_step < state.max_steps:
        raise Interrupted(f"saved at step {state.global_step} of {state.max_steps}")
    primary = (trainer.args.metric_for_best_model or "").removeprefix("eval_") or None
    if options.average:
        return history(state, primary) | _averaged(trainer, checkpoints, options.average, primary)
    if state.best_model_checkpoint and state.best_global_step != state.global_step:
        load_weights(trainer.parts(), Path(state.best_model_checkpoint))
    return history(state, primary)


def _averaged(trainer: Trainer, checkpoints: Path, count: int, primary: str | None) -> dict[str, Any]:
    """Give the model the mean weights of the last evaluations; return the steps, and what dev says of the mean."""
    from bge_cocktail.training.engine.checkpoints import checkpoints_of_evaluations, load_mean, step_of

    every, last = int(trainer.args.save_steps), trainer.state.max_steps
    chosen = checkpoints_of_evaluations(checkpoints, every, last)[:count]
    if len(chosen) < count:
        log.warning("average=%d: there were only %d evaluations, all of which are averaged", count, len(chosen))
    load_mean(trainer.parts(), chosen)
    steps = sorted(step_of(path) for path in chosen)
    seen: dict[str, Any] = {"averaged_steps": steps, "best_step": steps[-1]}
    if primary is not None:
        seen["dev_best"] = trainer.evaluate()[f"eval_{primary}"]
        trainer.state.log_history.pop()  # no step of its own in the curves
    return seen


class BadLoss(CocktailError):
    """A loss that is no number, and the rows of its batch."""

    def __init__(self, value: float, rows: Sequence[int]) -> None:
        super().__init__(f"the loss is {value}; a lower learning rate or fp32 may help")
        self.rows = list(rows)
