"""Files of a folder and its subfolders, and lists of files, as datasets of all kinds have them."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from detrx.errors import InvalidInputError

__all__ = [
    "SPLIT_FOLDERS",
    "DatasetConversionError",
    "files_in",
    "listed_names",
    "read_classes",
    "read_text",
    "spellings",
]

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What folders of splits are called -> split."""


class DatasetConversionError(InvalidInputError):
    """A dataset that cannot be converted; the message has a line `file:line: reason` for each place at fault."""


def files_in(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files with one of these suffixes (in lower case), in a folder and its subfolders, sorted.

    Links to folders are followed, but no folder is entered twice: links may lead in a circle.
    """
    entered = {os.path.realpath(folder)}
    found: list[Path] = []

    def enter(place: str) -> None:
        links = []
        for entry in sorted(os.scandir(place), key=lambda each: each.name):
            if entry.is_dir() and entry.is_symlink():
                links.append(entry.path)
            elif entry.is_dir():
                enter_new(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in suffixes:
                found.append(Path(entry.path))
        for link in links:  # last, so that a folder is called by its own name
            enter_new(link)

    def enter_new(place: str) -> None:
        if (real := os.path.realpath(place)) not in entered:
            entered.add(real)
            enter(place)

    enter(os.fspath(folder))
    return sorted(found)


def read_text(file: Path) -> str:
    """A UTF-8 text, with or without byte order mark.

    Raises:
        DatasetConversionError: it is none.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetConversionError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def read_classes(file: Path) -> list[str]:
    """Class names, one per line."""
    return [name for line in read_text(file).split("\n") if (name := line.strip())]


def listed_names(file: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not empty, with their numbers; without a byte order mark, and with bytes that
    are no UTF-8 as they are in names of files."""
    text = file.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    lines = enumerate((line.strip() for line in text.split("\n")), start=1)
    return [(number, line) for number, line in lines if line]


def spellings(name: str) -> list[str]:
    """A listed path as it is, and with the separators of Windows turned into ours."""
    return list(dict.fromkeys([name, name.replace("\\", "/")]))
