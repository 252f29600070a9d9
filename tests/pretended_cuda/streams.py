"""Streams, events and copies that take their time, of a device that does everything at once.

What an operator wrote on one stream may be read on another one only after this has waited for it. What was copied to
the host without blocking is there only after the host has waited.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from .tensor import PretendedTensor
from .waits import DeviceError, place, wait

_clock = itertools.count(1)
_now = 0
_pending: list[tuple[int, int, Tensor, Tensor]] = []
"""Copies to the host under way: stream, time, target, numbers."""


def tick() -> int:
    global _now
    _now = next(_clock)
    return _now


class Stream:
    """Stands for `torch.cuda.Stream`. Knows up to which time of every other stream it has waited."""

    _ids = itertools.count()

    def __init__(self, device: Any = None, priority: int = 0, **_: Any):
        self.id = next(Stream._ids)
        self.device = torch.device("cuda:0")
        self.seen: dict[int, int] = {}

    @property
    def cuda_stream(self) -> int:
        return self.id

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def wait_event(self, event: Event) -> None:
        for stream, time in event.covers.items():
            self.seen[stream] = max(time, self.seen.get(stream, 0))

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def synchronize(self) -> None:
        wait("torch.cuda.Stream.synchronize", for_all=False)
        arrive({**self.seen, self.id: _now})

    def query(self) -> bool:
        return True

    def __enter__(self) -> Stream:
        _current.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        _current.pop()


class Event:
    """Stands for `torch.cuda.Event`."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, **_: Any):
        self.covers: dict[int, int] = {}

    def record(self, stream: Stream | None = None) -> None:
        stream = current() if stream is None else stream
        self.covers = {**stream.seen, stream.id: _now}

    def wait(self, stream: Stream | None = None) -> None:
        (current() if stream is None else stream).wait_event(self)

    def synchronize(self) -> None:
        """Is not counted as waiting where nothing is under way that it waits for."""
        if any(time <= self.covers.get(stream, 0) for stream, time, _, _ in _pending):
            wait("torch.cuda.Event.synchronize", for_all=False)
        arrive(self.covers)

    def query(self) -> bool:
        arrive(self.covers)
        return True

    def elapsed_time(self, other: Event) -> float:
        return 1.0


DEFAULT = Stream()
_current = [DEFAULT]


def current(device: Any = None) -> Stream:
    return _current[-1]


def synchronize(device: Any = None) -> None:
    wait("torch.cuda.synchronize")
    arrive(None)


def arrive(covers: dict[int, int] | None) -> None:
    """Finish copies to the host: of the streams up to the given times; None: all."""
    left = []
    for stream, time, target, values in _pending:
        if covers is None or time <= covers.get(stream, 0):
            target.copy_(values)
        else:
            left.append((stream, time, target, values))
    _pending[:] = left


def waited() -> None:
    """The host has waited for the current stream, for whatever reason."""
    if _pending:
        arrive({**current().seen, current().id: _now})


def copy_later(target: Tensor, values: Tensor) -> None:
    """Start a copy to the host; until it arrives the target holds what nobody would take for a result."""
    target.fill_(math.nan if target.is_floating_point() else -77 if target.dtype != torch.bool else True)
    _pending.append((current().id, tick(), target, values.clone()))


def check_read(name: str, tensors: list[PretendedTensor]) -> None:
    """Raise DeviceError if the current stream reads what another one may not have written yet."""
    stream = current()
    for tensor in tensors:
        if tensor.written is None:
            continue
        writer, time = tensor.written
        if writer != stream.id and time > stream.seen.get(writer, 0):
            raise DeviceError(
                f"{name}: stream {stream.id} uses a tensor {tuple(tensor.shape)} that stream {writer} wrote, without "
                f"having waited for it @ {place(3)}"
            )


def mark_written(tensors: list[PretendedTensor]) -> None:
    written = (current().id, tick())
    for tensor in tensors:
        tensor.written = written
