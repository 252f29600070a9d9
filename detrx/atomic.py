"""Files that are there completely, or not at all."""

import os
from collections.abc import Callable
from typing import IO, Any

TEMPORARY = ".tmp"
"""What the name of a file ends in while it is written."""


def write_atomically(path: str | os.PathLike, write: Callable[[IO[bytes]], Any]) -> None:
    """Let `write(file)` write a temporary file beside `path`, and put it in its place once it is on the disk."""
    temporary = f"{os.fspath(path)}{TEMPORARY}"
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the new name must be on the disk as well
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
