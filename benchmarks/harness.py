"""What the benchmarks share: timing, peak memory, the machine, tables and JSON."""

import ctypes
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from detrx.analysis.memory import peak_allocation
from detrx.analysis.table import print_table
from detrx.analysis.timing import interleaved_times, synchronize
from detrx.collect_env import machine

__all__ = [
    "copy_bytes_per_ms",
    "device_medians",
    "machine",
    "medians",
    "peak_mib",
    "print_table",
    "synchronize",
    "write_json",
]

RESULTS = Path(__file__).resolve().parent / "results"


def medians(
    functions: dict[str, Callable[[], object]], rounds: int, device: str, warm_up: bool = True
) -> dict[str, float]:
    """Median milliseconds of each function over `rounds`; see `interleaved_times`."""
    times = interleaved_times(functions, rounds, device, warm_up)
    return {name: statistics.median(values) for name, values in times.items()}


def device_medians(functions: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Median milliseconds that the device works on a call of each function, over `rounds`, in which they take turns.

    On a GPU, calls are queued while it sleeps and then run one right after the other: what Python and the launches cost
    is not in it. A function that waits for the device is timed with these waits. On a CPU: see `medians`.
    """
    if device != "cuda":
        return medians(functions, rounds, device)
    plans = {name: _plan(function) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            calls, cycles = plans[name]
            times[name].append(_queued(function, calls, cycles) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def copy_bytes_per_ms(device: str, megabytes: int = 1024) -> float:
    """Bytes that a copy on the device reads and writes in a millisecond: the limit of its memory, as far as a program
    reaches it."""
    source = torch.empty(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / device_medians({"copy": lambda: target.copy_(source)}, 10, device)["copy"]


CYCLES_PER_MS = 2_000_000  # of a GPU at its highest clock


def _plan(function: Callable[[], object]) -> tuple[int, int]:
    """How many calls to time together, about 2 ms of work, and for how many cycles the GPU has to sleep until all of
    them are queued."""
    function()  # compiles, allocates
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    queued = 1e3 * (time.perf_counter() - start)
    torch.cuda.synchronize()
    calls = min(max(math.ceil(2 / max(_queued(function, 1, 0), 1e-3)), 1), 20)
    return calls, int(CYCLES_PER_MS * (0.2 + 1.5 * queued * calls))


def _queued(function: Callable[[], object], calls: int, cycles: int) -> float:
    """Milliseconds between events around the calls."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(cycles)
    start.record()
    for _ in range(calls):
        function()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop)


def peak_mib(function: Callable[[], object], device: str) -> float:
    """MiB that a call of `function` adds at its peak to what the process holds (on the CPU: Linux only)."""
    if device == "cuda":
        return peak_allocation(function, device) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not to be had for nothing
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak restarts from here
    before = _status_mib("VmRSS")
    function()
    return _status_mib("VmHWM") - before


def _status_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) / 2**10


def write_json(name: str, content: dict[str, object]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
