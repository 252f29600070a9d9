"""Logging: coloured console of the main process, and one log file per rank."""

import atexit
import functools
import logging
import os
import sys

from termcolor import colored

from detrx.d2.embedded.file_io import PathManager

__all__ = ["setup_logger"]

_LEVEL_PREFIX = {
    logging.WARNING: colored("WARNING", "red", attrs=["blink"]) + " ",
    logging.ERROR: colored("ERROR", "red", attrs=["blink", "underline"]) + " ",
    logging.CRITICAL: colored("ERROR", "red", attrs=["blink", "underline"]) + " ",
}


class _ColorfulFormatter(logging.Formatter):
    def __init__(self):
        super().__init__(colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s", datefmt="%m/%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _LEVEL_PREFIX.get(record.levelno, "") + super().formatMessage(record)


@functools.lru_cache  # a second call with the same arguments must not add the handlers again
def setup_logger(output: str | None = None, distributed_rank: int = 0, *, name: str = "detrx") -> logging.Logger:
    """Send the records of logger ``name`` and its children to the console and to a file.

    Args:
        output: folder (the file is then ``log.txt``) or a file name that ends in .txt or .log; None: no file.
        distributed_rank: rank 0 writes to the console; a rank above 0 appends ``.rank{N}`` to its file's name.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    plain = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt="%m/%d %H:%M:%S")

    if distributed_rank == 0:
        console = logging.StreamHandler(stream=sys.stdout)
        console.setFormatter(_ColorfulFormatter())
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
    stream = PathManager.open(filename, "a", encoding="utf-8", errors="backslashreplace")
    atexit.register(stream.close)
    return stream
