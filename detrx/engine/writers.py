"""Event writers that continue the files of a resumed training."""

import json
import logging
import os
import re
import sys

import torch

from detrx.atomic import write_atomically
from detrx.d2.utils import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter

__all__ = ["build_writers"]

logger = logging.getLogger(__name__)

_NO_GPU_MEMORY = re.compile(r"max_mem: 0M\s*$")


def build_writers(output_dir: str, max_iter: int, start_iter: int, resumed: bool) -> list[EventWriter]:
    """Writers to the console, ``metrics.json`` and TensorBoard.

    A resumed training drops what was written about iteration ``start_iter - 1`` and later ones, because the hooks after
    :class:`CheckpointHook` run again for that iteration.
    """
    first = start_iter - 1 if resumed else 0
    metrics = os.path.join(output_dir, "metrics.json")
    writers: list[EventWriter] = [_ConsoleWriter(max_iter), _ContinuedJSONWriter(metrics, first)]
    try:
        writers.append(TensorboardXWriter(output_dir, **({"purge_step": first} if resumed else {})))
    except UnicodeEncodeError:
        logger.warning("No TensorBoard events are written: the locale has no characters for the name %r", output_dir)
    return writers


class _ConsoleWriter(CommonMetricPrinter):
    """The provider's printer, which reports GPU memory; without a GPU the peak memory of the process is reported."""

    logger: logging.Logger | logging.LoggerAdapter

    def __init__(self, max_iter: int):
        super().__init__(max_iter)
        if not torch.cuda.is_initialized():
            self.logger = _WithHostMemory(self.logger, {})


class _WithHostMemory(logging.LoggerAdapter):
    def process(self, msg, kwargs):
        import resource  # does not exist on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
        megabytes = peak / (2**20 if sys.platform == "darwin" else 2**10)
        return f"{_NO_GPU_MEMORY.sub('', msg).rstrip()}  max_mem: {megabytes:.0f}M", kwargs


class _ContinuedJSONWriter(JSONWriter):
    """A `JSONWriter` that first drops the lines of iteration ``first`` and later, and does not repeat the others."""

    def __init__(self, path: str, first: int):
        last = _truncate(path, first)
        super().__init__(path)
        self._last_write = last


def _truncate(path: str, first: int) -> int:
    """Drop the lines of iterations >= ``first`` and an incomplete last line. Returns the last iteration left, or -1."""
    if not os.path.exists(path):
        return -1
    kept, last = [], -1
    with open(path, "rb") as file:
        for line in file:
            try:
                iteration = json.loads(line)["iteration"]
            except (ValueError, KeyError, TypeError):
                continue
            if iteration < first:
                kept.append(line)
                last = max(last, iteration)
    write_atomically(path, lambda file: file.writelines(kept))
    return last
