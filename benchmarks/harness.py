"""What the benchmarks share: timing, peak memory, the machine, tables and JSON."""

import ctypes
import json
import statistics
from collections.abc import Callable
from pathlib import Path

from detrx.analysis.memory import peak_allocation
from detrx.analysis.table import print_table
from detrx.analysis.timing import interleaved_times
from detrx.collect_env import machine

__all__ = ["machine", "medians", "peak_mib", "print_table", "write_json"]

RESULTS = Path(__file__).resolve().parent / "results"


def medians(
    functions: dict[str, Callable[[], object]], rounds: int, device: str, warm_up: bool = True
) -> dict[str, float]:
    """Median milliseconds of each function over `rounds`; see `interleaved_times`."""
    times = interleaved_times(functions, rounds, device, warm_up)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_mib(function: Callable[[], object], device: str) -> float:
    """MiB that a call of `function` adds at its peak to what the process holds (on the CPU: Linux only)."""
    if device == "cuda":
        return peak_allocation(function, device) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not to be had for nothing
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts from here
    before = _status_mib("VmRSS")
    function()
    return _status_mib("VmHWM") - before


def _status_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) / 2**10


def write_json(name: str, content: dict[str, object]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path
