"""Shared by the commands: common arguments, JSON output, and one-line errors for mistakes of the user."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from detrx.atomic import write_atomically
from detrx.console import print_anything
from detrx.errors import user_message


def run_tool(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run a command. An error caused by the user prints one line and exits with status 1; Ctrl-C, with 130; a reader of
    stdout that has ended, as `head` does, with 1 and no message."""
    print_anything()
    try:
        run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes at the end
        sys.exit(1)
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")


def _nobody_reads() -> bool:
    """Whether it is stdout that is broken; the pipe could be one to another process."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def add_config(
    parser: Any, help: str = "config that the model was trained with", required: bool = True, **how: Any
) -> None:
    """Add `--config-file`, a file or a name of the model zoo, to a parser or an argument group."""
    how |= {"required": True} if required else {}
    parser.add_argument(
        "--config-file", metavar="CONFIG", help=f"{help}: a file, or a name such as dino/dino_r50", **how
    )


def add_weights(parser: Any) -> None:
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="checkpoint (averaged weights are used if it has any)"
    )


def add_device(parser: Any) -> None:
    """Add `--device`; the parsed value is a device name, never "auto"."""
    parser.add_argument(
        "--device", type=device, default="auto", help="cpu, cuda, ... (default: auto, a GPU if there is one)"
    )


def add_size(parser: Any) -> None:
    parser.add_argument(
        "--size",
        type=at_least(1),
        nargs=2,
        default=(800, 1333),
        metavar=("H", "W"),
        help="image size (default: 800 1333)",
    )


def add_overrides(parser: Any, help: str = "config overrides") -> None:
    """Add config overrides, as the last arguments or after `--opts`. Parse the arguments with `parse`."""
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help=help)
    parser.add_argument(
        "--opts", dest="more_opts", nargs="+", default=[], metavar="KEY=VALUE", help="same as KEY=VALUE"
    )


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; `opts` of the result has all overrides."""
    args = parser.parse_intermixed_args(argv)
    if hasattr(args, "more_opts"):
        args.opts = [*args.opts, *args.more_opts]
        del args.more_opts
    return args


def at_least(minimum: int) -> Callable[[str], int]:
    """Argument type: an integer of at least `minimum`."""

    def number(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be {minimum} or more, got {value}")
        return value

    number.__name__ = "int"  # for argparse's message "invalid int value"
    return number


def not_negative(text: str) -> float:
    """Argument type: a number, 0 or more."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value


not_negative.__name__ = "float"  # for argparse's message "invalid float value"


def fraction(text: str) -> float:
    """Argument type: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text}")
    return value


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, creating the folder, and print the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))
    print(f"figures: {path}")


def device(name: str) -> str:
    """Argument type: a device that torch has here; "auto" becomes a GPU if there is one, else the CPU."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if gpus else "cpu"
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{name!r} is not a device of torch, such as cpu, cuda or cuda:1") from error
    if found.type == "cuda" and (found.index or 0) >= gpus:
        raise argparse.ArgumentTypeError(f"{name!r} is not here: torch sees {gpus or 'no'} GPU{'s' * (gpus != 1)}")
    return name
