"""Writers of a training that may be resumed."""

import json
import logging
import os
import sys

import torch

from detrx.d2.utils import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter

__all__ = ["build_writers"]


def build_writers(output_dir: str, max_iter: int, start_iter: int, resumed: bool) -> list[EventWriter]:
    """Writers to the console, ``metrics.json`` and TensorBoard.

    A resumed training drops what was written of iterations ``start_iter`` and later, which it runs again. A new one
    renames the ``metrics.json`` it finds to ``metrics.previous.json``.
    """
    metrics = os.path.join(output_dir, "metrics.json")
    if not resumed and os.path.exists(metrics):
        os.replace(metrics, os.path.join(output_dir, "metrics.previous.json"))
    return [
        _ConsoleWriter(max_iter),
        _ContinuedJSONWriter(metrics, start_iter),
        TensorboardXWriter(output_dir, **({"purge_step": start_iter} if resumed else {})),
    ]


class _ConsoleWriter(CommonMetricPrinter):
    """The provider's line, which names memory on GPUs only, with the peak memory of the process on CPUs."""

    def __init__(self, max_iter: int):
        super().__init__(max_iter)
        if not torch.cuda.is_available():
            self.logger = _WithHostMemory(self.logger, {})


class _WithHostMemory(logging.LoggerAdapter):
    def process(self, msg, kwargs):
        import resource  # does not exist on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
        megabytes = peak / (2**20 if sys.platform == "darwin" else 2**10)
        return f"{msg.rstrip()}  max_mem: {megabytes:.0f}M", kwargs


class _ContinuedJSONWriter(JSONWriter):
    """A `JSONWriter` that first cuts the file back to the lines before ``start_iter``, and writes none of those again."""

    def __init__(self, path: str, start_iter: int):
        last = _truncate(path, start_iter)
        super().__init__(path)
        self._last_write = last


def _truncate(path: str, start_iter: int) -> int:
    """Drop the lines of iterations >= ``start_iter`` and a torn last line; returns the last iteration left, or -1."""
    if not os.path.exists(path):
        return -1
    kept, last = [], -1
    with open(path) as file:
        for line in file:
            try:
                iteration = json.loads(line)["iteration"]
            except (ValueError, KeyError, TypeError):
                continue
            if iteration < start_iter:
                kept.append(line)
                last = max(last, iteration)
    temporary = path + ".tmp"
    with open(temporary, "w") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return last
