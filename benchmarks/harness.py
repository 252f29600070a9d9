"""What the benchmarks share: timing, peak memory, the machine, tables and JSON."""

import ctypes
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from detrx.collect_env import machine

__all__ = ["machine", "medians", "peak_mib", "print_table", "write_json"]

RESULTS = Path(__file__).resolve().parent / "results"


def medians(
    functions: dict[str, Callable[[], object]], rounds: int, device: str, warm_up: bool = True
) -> dict[str, float]:
    """Median milliseconds of each function over `rounds`, which take turns, so that a busy moment hits all of them.

    With `warm_up` each is called once before; leave it out where they were called already.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values() if warm_up else ():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            _synchronize(device)
            start = time.perf_counter()
            function()
            _synchronize(device)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_mib(function: Callable[[], object], device: str) -> float:
    """MiB that a call of `function` adds at its peak to what the process holds (on the CPU: Linux only)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not to be had for nothing
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts from here
    before = _status_mib("VmRSS")
    function()
    return _status_mib("VmHWM") - before


def _status_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) / 2**10


def print_table(rows: list[dict[str, object]]) -> None:
    """One line per row; the keys of the first are the header."""
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print(
            "  ".join(
                text.rjust(width) if i else text.ljust(width)
                for i, (text, width) in enumerate(zip(line, widths, strict=True))
            )
        )


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def write_json(name: str, content: dict[str, object]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path
