"""Telling a mistake of the user, which one line explains, from a bug, which needs a traceback."""

import argparse
import linecache
import os
import re
import sys
import traceback
from collections.abc import Callable

from detrx import projects
from detrx.checkpoint.checkpointer import CheckpointError
from detrx.engine.config import ConfigError
from detrx.engine.step_log import NonFiniteError

__all__ = ["run_tool", "user_error"]

_ALWAYS = (CheckpointError, ConfigError, NonFiniteError, FileNotFoundError, PermissionError, NotADirectoryError)
_IF_CHECKED = (ValueError, KeyError, OSError, ImportError, FloatingPointError)
_OURS = (os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep, *(p + os.sep for p in projects.__path__))
_CATALOG = os.path.join("detectron2", "data", "catalog.py")
_FRAME = re.compile(r'^ *File "(?P<file>.+)", line \d+, in .+\n *(?P<line>.*)$', re.MULTILINE)


def run_tool(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run a command-line tool; a mistake of the user ends it with one line and exit status 1."""
    try:
        run(args)
    except Exception as error:
        message = user_error(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")


def user_error(error: BaseException) -> str | None:
    """The message for a mistake of the user, or None for anything else.

    A mistake is one of our own errors, a file that cannot be opened, or an exception that a ``raise`` statement in
    detrx or its projects has raised (also in a data loading worker): a check, and not an expression that went wrong.
    """
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, _ALWAYS + _IF_CHECKED) and "in DataLoader worker process" in text:
        return _worker_error(text)
    if isinstance(error, _ALWAYS):
        return text
    if isinstance(error, _IF_CHECKED) and error.__traceback__ is not None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if _is_check(frame.filename, linecache.getline(frame.filename, frame.lineno or 0)):
            return text
    return None


def _worker_error(text: str) -> str | None:
    """Message of an exception that torch has passed on as the text of its traceback."""
    frames = list(_FRAME.finditer(text))
    message = text[frames[-1].end() :].strip() if frames else ""
    kind, _, message = message.rpartition("\n")[2].partition(": ") if "\n" in message else message.partition(": ")
    if not frames or not message:
        return None
    opened = kind in ("FileNotFoundError", "PermissionError")
    return message.strip("'\"") if opened or _is_check(frames[-1]["file"], frames[-1]["line"]) else None


def _is_check(file: str, line: str) -> bool:
    return (file.startswith(_OURS) or file.endswith(_CATALOG)) and line.strip().startswith("raise ")
