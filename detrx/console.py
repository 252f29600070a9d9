"""Printing wherever a command runs."""

import sys

__all__ = ["print_anything"]


def print_anything() -> None:
    """Let stdout and stderr write characters that their encoding lacks as escapes, instead of raising an error.

    These are names of classes in a terminal that only knows ASCII, and names of files that are no text.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
