"""Files that are there completely, or not at all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

__all__ = ["TEMPORARY", "replacing", "write_atomically"]

TEMPORARY = ".tmp"
"""What the name of a file ends in while `write_atomically` writes it."""


def write_atomically(path: str | os.PathLike, write: Callable[[IO[bytes]], Any]) -> None:
    """Let `write(file)` write a temporary file beside `path`, and put it in its place once it is on the disk."""
    with replacing(path, f"{os.fspath(path)}{TEMPORARY}") as temporary, open(temporary, "wb") as file:
        write(file)


@contextmanager
def replacing(path: str | os.PathLike, temporary: str | os.PathLike) -> Iterator[str | os.PathLike]:
    """The file that is written at `temporary` takes the place of `path`, or is removed if anything is raised.

    Args:
        path: the file to write.
        temporary: a path in the same folder.
    """
    try:
        yield temporary
        with open(temporary, "rb+") as file:
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
