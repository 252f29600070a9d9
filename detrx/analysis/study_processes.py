"""The processes in which the trainings of a study run: when the study is ended, they end as well."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

__all__ = ["pass_on_sigterm", "run_process"]

_running: set[subprocess.Popen] = set()


def run_process(command: Sequence[str], **options: Any) -> int:
    """Run a command and return its exit status; `options` are those of `subprocess.Popen`."""
    with subprocess.Popen(command, **options) as process:
        _running.add(process)
        try:
            return process.wait()
        finally:
            _running.discard(process)


@contextlib.contextmanager
def pass_on_sigterm() -> Iterator[None]:
    """Context in which SIGTERM ends this process and those of `run_process`: trainings save a checkpoint first. (Ctrl-C
    in a terminal reaches them by itself.)"""
    if threading.current_thread() is not threading.main_thread():  # other threads cannot set handlers
        yield
        return
    previous = signal.signal(signal.SIGTERM, _end_all)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _end_all(number: int, frame: FrameType | None) -> None:
    for process in tuple(_running):
        process.send_signal(number)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
