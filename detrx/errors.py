"""Mistakes that a user can mend, told apart from bugs by their type.

A command prints the message of a mistake in one line; any other exception ends it with a traceback. Messages say what
is wrong and where, and what was expected. The subclasses are also the built-in exceptions that callers catch.
"""

import re

__all__ = [
    "InvalidInputError",
    "MissingImportError",
    "NonFiniteError",
    "NonFinitePredictionError",
    "UnavailableError",
    "UnknownNameError",
    "UserError",
    "first_line",
    "user_message",
]


class UserError(Exception):
    """A mistake of the user, or of the files and the machine the user has."""


class InvalidInputError(UserError, ValueError):
    """An argument, a config or the content of a file cannot be used."""


class UnknownNameError(UserError, KeyError):
    """There is nothing of this name."""

    __str__ = Exception.__str__  # that of KeyError puts the message in quotes


class MissingImportError(UserError, ImportError):
    """A package is not installed, or a config imports what does not exist."""


class UnavailableError(UserError, OSError):
    """A file cannot be reached or written, or a server cannot be reached."""


class NonFiniteError(UserError, FloatingPointError):
    """Losses, gradients, costs or predictions became infinite or NaN."""


class NonFinitePredictionError(NonFiniteError):
    """A model predicts infinite values or NaN."""


# What `open` raises: the message names the file.
_MISTAKES = (UserError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
_FRAME = re.compile(r'^ *File ".+", line \d+, in .+\n.*$', re.MULTILINE)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none: what fits into a message of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def user_message(error: BaseException) -> str | None:
    """The message of a mistake of the user, or None for any other exception."""
    if not isinstance(error, _MISTAKES):
        return None
    text = str(error)
    if "in DataLoader worker process" not in text:
        return text
    # torch raises the type of a worker's exception again, with the text of its traceback as the message
    *_, last_frame = _FRAME.finditer(text)
    return text[last_frame.end() :].partition(f"{type(error).__name__}: ")[2].strip()
