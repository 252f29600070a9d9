"""How the C library gives freed memory back to the system."""

import contextlib
import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

_TRIM, _MMAP = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h."""
_LARGEST = 2**31 - 1  # mallopt takes an int
_LARGEST_MMAP = 4 * 2**20 * ctypes.sizeof(ctypes.c_long)
"""Larger thresholds for mmap are refused before glibc 2.35."""


def keep_freed_memory() -> bool:
    """Let glibc keep memory that is freed, and use it again, instead of returning it to the system.

    A training step on a CPU frees what the next one needs. By default glibc returns much of it after every step, and
    the kernel then maps and zeroes the same pages again: thousands of page faults per step. The process holds the
    memory of its largest step afterwards.

    Variables such as `MALLOC_TRIM_THRESHOLD_`, which set the same limits, take precedence.

    Returns:
        whether this was done; other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ and not any(
        _mallopt(_MMAP, limit) for limit in (_LARGEST, _LARGEST_MMAP)
    ):
        return False  # the other limit alone would fix this one at its small default
    return "MALLOC_TRIM_THRESHOLD_" in os.environ or _mallopt(_TRIM, _LARGEST)


def _mallopt(parameter: int, value: int) -> bool:
    with contextlib.suppress(AttributeError, OSError):  # musl has no mallopt
        return ctypes.CDLL(None).mallopt(parameter, value) == 1
    return False
