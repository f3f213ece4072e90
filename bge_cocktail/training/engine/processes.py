"""Several processes that train together, as torchrun or accelerate starts them."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bge_cocktail.core.errors import UsageError

# how accelerate launch says that the encoder is cut into parts
_SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron",
}


@dataclass(frozen=True, slots=True)
class Processes:
    """This process and the others.

    Attributes:
        number: Of this one, from 0.
        count: How many there are.
    """

    number: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.number == 0

    def device(self, device: str) -> str:
        """Return the device of this process, where it is one of several of a kind."""
        return str(_state(device).device) if self.count > 1 and device.startswith("cuda") else device

    def wait(self) -> None:
        """Go on when all are here."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process does it before the others do."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


def is_first_process() -> bool:
    """Return whether this process was started alone, or is the first of several."""
    return os.environ.get("RANK", "0") == "0"


def refuse_several(what: str) -> None:
    """Raise if this process was started with others.

    Raises:
        UsageError: It was.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"{what} runs its trainings one after the other in one process; start it without torchrun")


def join_processes(device: str) -> Processes:
    """Meet the other processes, if this one was started with others.

    Raises:
        UsageError: They were to share out the encoder itself.
    """
    for name, word in _SHARDING.items():
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise UsageError(
                f"{word} of accelerate isn't supported. Start it by torchrun, or by accelerate launch without it; "
                "`shard` shares the encoder out over the processes (FSDP), and `gradient_cache`, "
                "`gradient_checkpointing` and `lora` make room, too"
            )
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    state = _state(device)
    atexit.register(_leave)
    if state.process_index:  # one voice is enough
        logging.getLogger("bge_cocktail").setLevel(logging.ERROR)
    return Processes(state.process_index, state.num_processes)


def end_process(status: str | int | None) -> None:
    """End this process, if it met others, when its command is done; what is registered with atexit is done first.

    The interpreter's own end is left out. A thread of gloo that still drops its last work there (PyTorch's #179291)
    asks for the interpreter's lock, is ended instead, and takes the process with it: "terminate called without an
    active exception".

    Args:
        status: As in SystemExit.
    """
    if "torch.distributed" not in sys.modules:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


def _leave() -> None:
    """Close the connections before the interpreter ends."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(0.1)  # gives the interpreter's lock to threads that wait for it to drop their last work


def _state(device: str) -> Any:
    from accelerate import PartialState

    from bge_cocktail.core.devices import choose_device

    return PartialState(cpu=choose_device(device) == "cpu")
