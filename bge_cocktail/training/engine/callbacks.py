"""What happens beside the steps: progress, leaving cleanly, seals, holding on to the base's weights."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from bge_cocktail.core.progress import Advance, progress
from bge_cocktail.training.engine.checkpoints import checkpoints_in, checkpoints_of_evaluations, seal
from bge_cocktail.training.engine.malloc import free_memory
from bge_cocktail.training.engine.memory import resident_memory

log = logging.getLogger(__name__)
# memory may grow to this many times what the first steps took
MEMORY_GROWTH = 1.2


FIRST_STEPS = 2


class ProgressCallback(TrainerCallback):
    """Announces the steps and what was found on dev."""

    def __init__(self) -> None:
        self._context: AbstractContextManager[Advance] | None = None
        self._advance: Advance | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._context = progress("training", state.max_steps)
        self._advance = self._context.__enter__()
        self._advance(state.global_step, "")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._advance is not None:
            self._advance(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if self._advance is not None and "loss" in (logs or {}):
            self._advance(0, f"loss {(logs or {})['loss']:.4f}")

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        values = {name.removeprefix("eval_").replace("_", " ", 1): value for name, value in (metrics or {}).items()}
        shown = [f"{name} {value:.4f}" for name, value in values.items() if name.startswith(("dev ", "general "))]
        if shown:
            log.info("step %d of %d: %s", state.global_step, state.max_steps, ", ".join(shown))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away, also when training ends early."""
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None


class CheckpointCallback(TrainerCallback):
    """Seals each checkpoint when it is written; only then are older ones removed.

    The best and two of the last stay, and those that are averaged.

    Args:
        save_steps: How often one is written beside those of evaluations.
        average: How many of evaluations are averaged.
    """

    def __init__(self, save_steps: int = 0, average: int = 0) -> None:
        self._save_steps, self._average = save_steps, average

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._save_steps and state.global_step % self._save_steps == 0:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.world_size > 1:  # each process writes its state of chance
            torch.distributed.barrier()
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        seal(folder / f"checkpoint-{state.global_step}")
        averaged = checkpoints_of_evaluations(folder, int(args.save_steps), state.max_steps)[: self._average]
        for path in checkpoints_in(folder)[2:]:
            if path.name != f"checkpoint-{state.best_global_step}" and path not in averaged:
                shutil.rmtree(path)


class MemoryCallback(TrainerCallback):
    """Keeps kept memory from growing: batches of many sizes leave holes in it, more with every step (`keep_memory`)."""

    def __init__(self) -> None:
        self._steps, self._limit = 0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._steps += 1
        size = resident_memory()
        if self._steps <= FIRST_STEPS:
            self._limit = max(self._limit, MEMORY_GROWTH * size)
        elif size > self._limit:
            free_memory()


class StopCallback(TrainerCallback):
    """On SIGTERM or Ctrl-C, ends after the step that is being done, with a checkpoint; a second signal ends at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopCallback:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _frame: object) -> None:
        if self.signal is not None:
            self.__exit__()
            signal.raise_signal(number)
            return
        self.signal = number
        log.warning("%s: saving a checkpoint, then leaving", signal.Signals(number).name)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._anyone(args):
            # an evaluation that is due is made: the resumed run begins after it
            control.should_save = control.should_training_stop = True

    def _anyone(self, args: Any) -> bool:
        """Return whether any process was told to stop: all must save at the same step."""
        import torch.distributed as dist

        told = self.signal is not None
        if args.world_size > 1:
            flag = torch.tensor(float(told), device=args.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            self.signal = self.signal or (signal.SIGTERM if flag.item() else None)
            told = bool(flag.item())
        return told


class AnchorCallback(TrainerCallback):
    """Pulls weights towards the base's (L2-SP, arXiv:1802.01483).

    Adds ``strength * (weight - base)`` to their gradients, after these are clipped.

    Args:
        strength: How much.
        model: Its weights are now the base's.
    """

    def __init__(self, strength: float, model: torch.nn.Module) -> None:
        self._strength = strength
        self._base = [
            (parameter, parameter.detach().clone()) for parameter in model.parameters() if parameter.requires_grad
        ]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for parameter, base in self._base:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - base, alpha=self._strength)


class ReportCallback(TrainerCallback):
    """Hands the dev metric of each evaluation to whoever asked for it, such as a search that prunes."""

    def __init__(self, metric: str, report: Callable[[int, float], None]) -> None:
        self._metric, self._report = metric, report

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        if metrics and self._metric in metrics:
            self._report(state.global_step, metrics[self._metric])
