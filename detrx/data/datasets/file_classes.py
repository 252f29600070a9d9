"""Classes that only the annotation file of a dataset knows, and what else its categories say."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detrx.errors import InvalidInputError

from .converted import read_source
from .custom import as_categories


class FileClasses:
    """The categories of annotation files in COCO's format, read when they are first asked for.

    Args:
        files: returns annotation files with these categories, the smallest first: the first that exists is read.
        name_of: name of a class by its entry in the file.
    """

    def __init__(
        self,
        files: Callable[[], Sequence[Path]],
        name_of: Callable[[dict[str, Any]], str] = lambda category: category["name"],
    ) -> None:
        self._files, self._name_of = files, name_of
        self._read: dict[tuple[Path, ...], list[dict[str, Any]]] = {}

    def remember(self, categories: list[dict[str, Any]]) -> None:
        """Take these entries of one of the files, which has just been read, instead of reading one."""
        self._read = {tuple(self._files()): sorted(categories, key=lambda category: category["id"])}

    def entries(self) -> list[dict[str, Any]]:
        """Entries of the categories, ordered by id.

        Raises:
            AttributeError: none of the files exists.
            ValueError: the file is faulty.
        """
        files = tuple(self._files())
        if files not in self._read:
            existing = [file for file in files if file.is_file()]
            if not existing:
                raise AttributeError(f"unknown classes: {' and '.join(map(str, files))} do not exist")
            content = read_source(existing[0])
            categories = content.get("categories") if isinstance(content, dict) else None
            if not isinstance(categories, list) or not categories:
                raise InvalidInputError(f"annotation file {existing[0]}: has no list 'categories', or an empty one")
            as_categories(categories, f"annotation file {existing[0]}: ")
            self.remember(categories)
        return self._read[files]

    def names(self) -> list[str]:
        return [self._name_of(category) for category in self.entries()]

    def ids(self) -> dict[int, int]:
        """Category id -> class index."""
        return {category["id"]: index for index, category in enumerate(self.entries())}
