"""How long a run's steps took on this machine, kept in the user's cache, and how long those to come will take."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bge_cocktail.core.outputs import new_file
from bge_cocktail.models.cache import default_cache_dir

TIMINGS_FILE = "timings.jsonl"
_KEPT, _ASKED = 500, 5


@contextmanager
def timed(step: str, model: Path, device: str, work: float) -> Iterator[None]:
    """Time what is done inside, and keep it.

    Args:
        step: What kind of step.
        model: The folder of the base; larger ones take longer.
        device: As the options name it.
        work: How much there is to do, in units of which each takes about as long (records times epochs, ...).
    """
    begun = time.monotonic()
    yield
    row = {**_kind(step, model, device), "work": work, "seconds": round(time.monotonic() - begun, 2)}
    # a cache that can't be written, or is written by another run now, costs an estimate and no more
    with suppress(OSError):
        path = default_cache_dir() / TIMINGS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as working:
            lines = [json.dumps(one) for one in [*_rows(), row][-_KEPT:]]
            working.write_text("\n".join(lines) + "\n", encoding="utf-8")


def expected_seconds(step: str, model: Path, device: str, work: float) -> float | None:
    """Return how long a step will take by the median rate of the last such steps; None where there were none."""
    kind = _kind(step, model, device)
    alike = [row for row in _rows() if {name: row.get(name) for name in kind} == kind][-_ASKED:]
    rates = [row["seconds"] / row["work"] for row in alike if row.get("work")]
    return statistics.median(rates) * work if rates else None


def _kind(step: str, model: Path, device: str) -> dict[str, Any]:
    return {"step": step, "model_bytes": _size(model), "device": device, "cores": os.cpu_count()}


def _size(model: Path) -> int:
    return sum(file.stat().st_size for kind in ("*.safetensors", "*.bin") for file in model.rglob(kind))


def _rows() -> list[dict[str, Any]]:
    try:
        lines = (default_cache_dir() / TIMINGS_FILE).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("seconds"), int | float)]
