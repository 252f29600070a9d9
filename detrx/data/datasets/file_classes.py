"""Datasets whose classes only their annotation files know."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detrx.coco.annotations import number_classes, parse_coco
from detrx.coco.problems import Findings
from detrx.coco.records import categories_of
from detrx.coco.values import Id, id_order
from detrx.d2.structures import BoxMode

from .sources import read_source


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
            categories_of(content, f"annotation file {existing[0]}")  # raises an error if they are faulty
            self._remember(content["categories"])
        return self._read[files]

    def names(self) -> list[str]:
        return [self._name_of(category) for category in self.entries()]

    def ids(self) -> dict[Id, int]:
        """Category id -> class index."""
        return {category["id"]: index for index, category in enumerate(self.entries())}

    def read_records(self, content: Any, json_file: Path, image_root: Path) -> list[dict[str, Any]]:
        """Dataset dicts of one of the files, as those of `load_coco`; its categories are remembered.

        Args:
            content: of the file, with the names of the images relative to `image_root`.

        Raises:
            ValueError: the content is not what it should be; names the file and the first entry at fault.
        """
        findings = Findings()
        records, _ = parse_coco(content, image_root, BoxMode.XYWH_ABS, findings)
        findings.raise_first_error(f"annotation file {json_file}")
        self._remember(content["categories"])
        number_classes(records, [category["id"] for category in self.entries()])
        return records

    def _remember(self, categories: list[dict[str, Any]]) -> None:
        """Take these entries of one of the files, which has just been read, instead of reading one."""
        self._read = {tuple(self._files()): sorted(categories, key=lambda each: id_order(each["id"]))}
