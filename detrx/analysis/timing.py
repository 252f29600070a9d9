"""Interleaved timing of functions, to compare them."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

Name = TypeVar("Name")


def interleaved_times(
    functions: Mapping[Name, Callable[[], object]],
    rounds: int,
    device: str,
    warm_up: bool = True,
    tick: Callable[[], object] | None = None,
) -> dict[Name, list[float]]:
    """Milliseconds of each function in each of `rounds`, in which they take turns, so that a busy moment of the machine
    hits all of them.

    Args:
        functions: by name.
        device: that they run on; a GPU is waited for.
        warm_up: call each once before; not needed where they were called already.
        tick: called after every call.
    """
    times: dict[Name, list[float]] = {name: [] for name in functions}
    for function in functions.values() if warm_up else ():
        function()
        if tick is not None:
            tick()
    for _ in range(rounds):
        for name, function in functions.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            times[name].append(1e3 * (time.perf_counter() - start))
            if tick is not None:
                tick()
    return times


def synchronize(device: str) -> None:
    """Wait until a GPU has done what it was given; nothing on a CPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
