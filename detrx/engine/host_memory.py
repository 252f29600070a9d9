"""How the C library gives freed memory back to the system."""

import contextlib
import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

# Of glibc's malloc.h.
_LIMITS = {-1: "MALLOC_TRIM_THRESHOLD_", -3: "MALLOC_MMAP_THRESHOLD_"}
"""mallopt's numbers of M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, and the variables that set the same limits."""
_LARGEST = 2**31 - 1  # mallopt takes an int


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
    done = True
    for number, variable in _LIMITS.items():
        if variable not in os.environ:
            done = _mallopt(number, _LARGEST) and done
    return done


def _mallopt(parameter: int, value: int) -> bool:
    with contextlib.suppress(AttributeError, OSError):  # musl has no mallopt
        return ctypes.CDLL(None).mallopt(parameter, value) == 1
    return False
