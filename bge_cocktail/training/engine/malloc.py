"""What freed memory becomes on Linux: kept for the next step, or given back."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# of malloc.h
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_memory() -> None:
    """Have glibc keep freed memory for the next step, instead of giving it back and having each page cleared again.

    That was a seventh of the CPU time of short trainings. What is kept must be given back now and then: `free_memory`.
    """
    change = _of_glibc("mallopt")
    if change is not None:
        change(_MMAP_MAX, 0)
        change(_TRIM_THRESHOLD, 2**31 - 1)


def free_memory() -> None:
    """Have glibc give back all memory that is free, also between what is in use."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    # not in every C library
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
