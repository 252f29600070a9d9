"""Files that are there completely, or not at all."""

import contextlib
import io
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from detrx.errors import UnavailableError

__all__ = ["TEMPORARY", "replacing", "write_atomically"]

TEMPORARY = ".tmp"
"""What the name of a file ends in while `write_atomically` writes it."""

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{12}\.tmp(\.\w+)?")
_SECONDS_OF_A_LEFTOVER = 24 * 60 * 60


def write_atomically(path: str | os.PathLike, write: Callable[[IO[bytes]], Any]) -> None:
    """Let `write(file)` write a temporary file beside `path`, and put it in its place once it is on the disk.

    Raises:
        UnavailableError: the file cannot be written; the message names it and says why, such as a full disk.
    """
    with replacing(path) as temporary:
        raw = _Raw(temporary)
        try:
            with io.BufferedWriter(raw) as file:
                write(file)
        except Exception as error:
            if raw.error is None:
                raise
            raise _unwritable(path, raw.error) from error  # torch.save raises a RuntimeError that hides the cause


@contextmanager
def replacing(path: str | os.PathLike, suffix: str = "") -> Iterator[str]:
    """The file written under the name that this gives takes the place of `path`, or is removed if anything is raised.

    Every writer has a name of its own, so that of several at once one leaves its file, whole. A link stays, and the
    file that it leads to is replaced. The file has the permissions that `open(path, "w")` would leave it. What is not a
    regular file, such as /dev/stdout, is written as it is. What killed writers left in the folder is removed
    after a day.

    Args:
        path: the file to write, in a folder that exists.
        suffix: for writers that look at it, such as ".onnx": the temporary name ends in it, instead of `TEMPORARY`.

    Raises:
        UnavailableError: the file cannot be written.
    """
    target = os.path.realpath(path)
    mode = _mode(path, target)
    if mode is not None and not stat.S_ISREG(mode):
        yield target
        return
    folder, name = os.path.split(target)
    try:
        _remove_leftovers(folder)
        temporary, descriptor = _create(folder, name, suffix)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        if mode is not None:
            with contextlib.suppress(OSError):  # file systems without permissions
                os.chmod(temporary, stat.S_IMODE(mode))
        yield temporary
        try:
            os.fsync(descriptor)
            os.replace(temporary, target)
        except OSError as error:
            raise _unwritable(path, error) from error
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise
    finally:
        os.close(descriptor)
    _sync(folder)


class _Raw(io.FileIO):
    """A file to write that remembers why it could not be written."""

    def __init__(self, path: str):
        super().__init__(path, "w")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _unwritable(path: str | os.PathLike, error: OSError) -> UnavailableError:
    return UnavailableError(f"{os.fspath(path)} cannot be written: {error.strerror or error}")


def _mode(path: str | os.PathLike, target: str) -> int | None:
    """Type and permissions of the file to replace; None if there is none."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unwritable(path, error) from error
    if stat.S_ISDIR(mode):
        raise UnavailableError(f"{os.fspath(path)} cannot be written: it is a folder")
    if not os.access(target, os.W_OK):
        raise UnavailableError(f"{os.fspath(path)} cannot be written: Permission denied")
    return mode


def _create(folder: str, name: str, suffix: str) -> tuple[str, int]:
    """Make a file with a name that nobody else has, with the permissions that `open` gives a new file."""
    while True:
        path = os.path.join(folder, f".{name[:50]}.{secrets.token_hex(6)}{TEMPORARY}{suffix}")
        with contextlib.suppress(FileExistsError):
            return path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def _remove_leftovers(folder: str) -> None:
    """Remove the temporary files of writers that were killed: those that nobody has written to for a day."""
    for name in os.listdir(folder):
        if not _LEFTOVER.fullmatch(name):
            continue
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):  # another process has removed it, or it is not ours
            if time.time() - os.stat(path).st_mtime > _SECONDS_OF_A_LEFTOVER:
                os.remove(path)


def _sync(folder: str) -> None:
    """Wait until the names in a folder are on the disk."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
