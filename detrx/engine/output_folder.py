"""The output folder of a training, which belongs to one run."""

import os
import re
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

from omegaconf import DictConfig

from detrx.atomic import write_atomically
from detrx.d2.config import LazyConfig
from detrx.d2.utils import comm
from detrx.errors import InvalidInputError, UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "EVALUATION_CONFIG",
    "TRAINING_CONFIG",
    "in_main_process",
    "last_set_aside",
    "lock",
    "set_earlier_run_aside",
    "write_config",
]

TRAINING_CONFIG = "config.yaml"
EVALUATION_CONFIG = "eval_config.yaml"
_LOCK = ".lock"

_OF_A_TRAINING = re.compile(r"metrics\.json|last_checkpoint|model_(\d+|final|best)\.pth")
_OF_A_RUN = re.compile(
    rf"{_OF_A_TRAINING.pattern}|{re.escape(TRAINING_CONFIG)}|{re.escape(EVALUATION_CONFIG)}|log\.txt(\.rank\d+)?"
    r"|metrics\.previous\.json|events\.out\.tfevents\..+|inference"
)
Result = TypeVar("Result")


def in_main_process(function: Callable[[], Result]) -> Result:
    """Call a function in rank 0 alone. Every process must ask, waits for it, and gets its result or its `UserError`."""
    result: Any = None
    error: UserError | None = None
    if comm.is_main_process():
        try:
            result = function()
        except UserError as raised:
            error = raised
        except OSError as raised:  # what a folder can refuse
            error = InvalidInputError(f"{raised.filename}: {raised.strerror}" if raised.filename else str(raised))
    result, error = comm.all_gather((result, error))[0]
    if error is not None:
        raise error
    return result


def lock(folder: str) -> None:
    """Keep other trainings out of a folder until this process ends, however it does.

    Raises:
        InvalidInputError: another training, which still runs, has locked it.
    """
    if fcntl is None:
        return
    descriptor = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT, 0o666)  # closed by the end of the process
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by loading workers
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, (BlockingIOError, PermissionError)):
            raise InvalidInputError(
                f"another training is running in {folder}: wait for it, or choose another train.output_dir"
            ) from error
        # otherwise a file system without locks


def set_earlier_run_aside(folder: str) -> str:
    """Move the files that an earlier training has left in a folder to `previous-1`, or the next free number, in it.

    Only what a training or an evaluation writes is moved. A folder without checkpoints and metrics stays as it is.

    Returns:
        where the files are now, or "" if nothing was moved.
    """
    names = os.listdir(folder)
    if not any(_OF_A_TRAINING.fullmatch(name) for name in names):
        return ""
    aside = os.path.join(folder, f"previous-{_last_number(names) + 1}")
    os.mkdir(aside)
    moved = [name for name in names if _OF_A_RUN.fullmatch(name)]
    for name in sorted(moved, key=lambda name: name != "last_checkpoint"):  # first, so that nothing resumes a part
        os.rename(os.path.join(folder, name), os.path.join(aside, name))
    return aside


def last_set_aside(folder: str) -> str:
    """Where `set_earlier_run_aside` has moved files the last time; "" if it has not."""
    number = _last_number(os.listdir(folder))
    return os.path.join(folder, f"previous-{number}") if number else ""


def _last_number(names: list[str]) -> int:
    return max((int(match[1]) for name in names if (match := re.fullmatch(r"previous-(\d+)", name))), default=0)


def write_config(cfg: DictConfig, path: str) -> None:
    """Write a config as YAML, completely or not at all. What YAML cannot hold is logged."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, os.path.basename(path))
        LazyConfig.save(cfg, file)
        if not os.path.isfile(file) or os.path.getsize(file) == 0:
            return
        with open(file, "rb") as stream:
            content = stream.read()
    write_atomically(path, lambda stream: stream.write(content))
