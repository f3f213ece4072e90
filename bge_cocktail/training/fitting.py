"""Run a trainer to its end: resumed, stopped, explained where it fails."""

from __future__ import annotations

import logging
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_cocktail.errors import CocktailError
from bge_cocktail.options import Tuning
from bge_cocktail.provenance import BAD_BATCH_FILE
from bge_cocktail.training.curves import history

if TYPE_CHECKING:
    from bge_cocktail.training.trainer import Trainer

log = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """A training that was told to stop; its last step is saved."""


def fit(
    trainer: Trainer, options: Tuning, working: Path, resume: bool, write_rows: Callable[[Sequence[int], Path], object]
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

    from bge_cocktail.training.callbacks import StopCallback
    from bge_cocktail.training.checkpoints import checkpoints_in, had_stopped, last_checkpoint, load_weights
    from bge_cocktail.training.module import BadLoss
    from bge_cocktail.training.trainer import explain_failure

    checkpoints = working / "checkpoints"
    last = last_checkpoint(checkpoints) if resume else None
    if resume:
        for damaged in checkpoints_in(checkpoints):
            if last is None or int(damaged.name.rsplit("-", 1)[1]) > int(last.name.rsplit("-", 1)[1]):
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
        raise Interrupted(signal.Signals(stop.signal).name)
    if state.best_model_checkpoint and state.best_global_step != state.global_step:
        load_weights(trainer.parts(), Path(state.best_model_checkpoint))
    return history(trainer.state, (trainer.args.metric_for_best_model or "").removeprefix("eval_") or None)
