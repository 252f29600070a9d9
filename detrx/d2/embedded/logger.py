"""Logging: coloured console of the main process, one log file per rank, and messages that are logged once."""

import atexit
import functools
import logging
import os
import sys
from collections import Counter

from termcolor import colored

from detrx.d2.embedded.file_io import PathManager

__all__ = ["log_first_n", "setup_logger"]

_LEVEL_PREFIX = {
    logging.WARNING: colored("WARNING", "red", attrs=["blink"]) + " ",
    logging.ERROR: colored("ERROR", "red", attrs=["blink", "underline"]) + " ",
    logging.CRITICAL: colored("ERROR", "red", attrs=["blink", "underline"]) + " ",
}


class _ColorfulFormatter(logging.Formatter):
    def __init__(self, root_name: str, abbrev_name: str):
        super().__init__(colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s", datefmt="%m/%d %H:%M:%S")
        self._root, self._abbrev = root_name + ".", abbrev_name + "." if abbrev_name else ""

    def formatMessage(self, record: logging.LogRecord) -> str:
        full_name, record.name = record.name, record.name.replace(self._root, self._abbrev)
        line = super().formatMessage(record)
        record.name = full_name
        return _LEVEL_PREFIX.get(record.levelno, "") + line


@functools.lru_cache  # a second call with the same arguments must not add the handlers again
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detrx",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Send the records of logger ``name`` and its children to the console and to a file.

    Args:
        output: folder (the file is then ``log.txt``) or a file name that ends in .txt or .log; None: no file.
        distributed_rank: rank 0 writes to the console; a rank above 0 appends ``.rank{N}`` to its file's name.
        abbrev_name: what stands for ``name`` in the console lines of its children.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    plain = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt="%m/%d %H:%M:%S")

    if configure_stdout and distributed_rank == 0:
        console = logging.StreamHandler(stream=sys.stdout)
        console.setFormatter(_ColorfulFormatter(name, name if abbrev_name is None else abbrev_name) if color else plain)
        logger.addHandler(console)

    if output is not None:
        filename = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        if distributed_rank > 0:
            filename = f"{filename}.rank{distributed_rank}"
        PathManager.mkdirs(os.path.dirname(filename) or ".")
        handler = logging.StreamHandler(_log_stream(filename))
        handler.setFormatter(plain)
        logger.addHandler(handler)
    return logger


@functools.cache  # several loggers share one file
def _log_stream(filename: str):
    stream = PathManager.open(filename, "a")
    atexit.register(stream.close)
    return stream


_counts: Counter = Counter()


def _caller() -> tuple[str, tuple]:
    """Logger name and identity of the line that called the function of this file that called this one."""
    frame = sys._getframe(2)
    module = frame.f_globals["__name__"]
    return "detrx" if module == "__main__" else module, (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def log_first_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple[str, ...] = "caller"):
    """Log the first ``n`` calls from the same line, or with the same text; ``key`` has "caller", "message" or both."""
    module, caller = _caller()
    keys = (key,) if isinstance(key, str) else key
    identity = (caller if "caller" in keys else ()) + ((msg,) if "message" in keys else ())
    _counts[identity] += 1
    if _counts[identity] <= n:
        logging.getLogger(name or module).log(lvl, msg)
