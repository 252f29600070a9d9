"""Where the host waits for the device: counted by kind and place while someone counts."""

from __future__ import annotations

import collections
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
_PREFIX = str(ROOT) + os.sep
_HARNESS = {
    str(FOLDER / f"{name}.py") for name in ("dispatch", "harness", "modes", "rules", "runtime", "streams", "tensor")
} | {__file__}

AFTER_WAIT: list[Callable[[], None]] = []
"""Called when the host has waited for all that the current stream was given."""


class DeviceError(RuntimeError):
    """What would fail, or be wrong, on a GPU."""


class Waits(collections.Counter):
    """How often the host waited, by (kind, place)."""

    @property
    def count(self) -> int:
        return sum(self.values())

    def __str__(self) -> str:
        lines = [f"{count} x {kind} at {place}" for (kind, place), count in sorted(self.items(), key=lambda x: x[0][1])]
        return "\n".join([f"the host waited {self.count} times for the device", *lines])


_counting: list[Waits] = []


@contextmanager
def waits() -> Iterator[Waits]:
    """Counts while the context is open how often the host waits for the device. May be nested."""
    found = Waits()
    _counting.append(found)
    try:
        yield found
    finally:
        _counting.remove(found)


def wait(kind: str, for_all: bool = True) -> None:
    """The host waits: for all that the current stream was given, or only for a part of it."""
    if _counting:
        where = place()
        for found in _counting:
            found[kind, where] += 1
    for after in AFTER_WAIT if for_all else ():
        after()


def place(limit: int = 2) -> str:
    """The innermost lines of the project that are being run, innermost first; "backward" where autograd runs them."""
    frame: FrameType | None = sys._getframe(1)
    lines: list[str] = []
    backward = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if frame.f_code.co_name == "_engine_run_backward":
            backward = "backward: "
        elif file.startswith(_PREFIX) and file not in _HARNESS and ".venv" not in file and len(lines) < limit:
            lines.append(f"{file.removeprefix(_PREFIX)}:{frame.f_lineno}")
        frame = frame.f_back
    return backward + (" < ".join(lines) or "outside of the project")
