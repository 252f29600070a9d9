"""One bad file among many: it is named and left out, the others are processed, and in the end a command fails."""

import sys

from tqdm import tqdm

from detrx.errors import InvalidInputError

__all__ = ["UNREADABLE", "BadFiles"]

UNREADABLE = (InvalidInputError, OSError)
"""What reading an image, a video or an annotation raises if the file is at fault."""


class BadFiles:
    """Files that cannot be read, each named on stderr as it is found."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def add(self, error: Exception) -> None:
        """Name a file that is left out, by the error that it led to."""
        self.errors.append(str(error))
        tqdm.write(f"left out: {error}", file=sys.stderr)

    def raise_any(self) -> None:
        """Raise an InvalidInputError if there are any, with the first and their number."""
        if self.errors:
            others = f" (and {len(self.errors) - 1} more, named above)" if len(self.errors) > 1 else ""
            raise InvalidInputError(f"{self.errors[0]}{others}")
