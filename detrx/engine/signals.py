"""Stopping a training by Ctrl-C or SIGTERM without losing its progress."""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["StopSignals"]

_SAME_KEY_PRESS = 1.0
"""Seconds in which further SIGINTs belong to the same Ctrl-C: terminals and launchers may each send one."""


class StopSignals:
    """Context in which SIGINT and SIGTERM are recorded instead of ending the process.

    A second Ctrl-C ends the process at once. Processes forked in this context, such as data loading workers, ignore
    SIGINT.

    Attributes:
        received: the first signal, or 0. As in shells, the exit code is 128 + its number.
    """

    def __init__(self) -> None:
        self.received = 0
        self._time = 0.0
        self._process = os.getpid()
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # other threads cannot set handlers
            self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        now = time.monotonic()
        if self.received == 0:
            self.received, self._time = number, now
            # not with logging or print, which the signal may have interrupted
            text = f"\n{signal.Signals(number).name}: saving a checkpoint, then exiting (Ctrl-C again: exit at once)\n"
            os.write(2, text.encode())
        elif number == signal.SIGINT and now - self._time > _SAME_KEY_PRESS:
            os._exit(128 + number)
