"""Ids in COCO files are the user's: whole numbers of any size, or text. The scorers get numbers of our own instead."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detrx.errors import InvalidInputError

from .problems import printable
from .values import area_of, id_order

__all__ = ["Numbering"]


class Numbering:
    """Numbers 1, 2, ... for the images and the categories of an annotation file, in the order of their ids.

    The scorers need this: pycocotools takes an annotation of id 0 for none, and faster-coco-eval holds ids in 64 bits.

    Args:
        images, categories: the file's entries, each with an "id".

    Attributes:
        image_ids, category_ids: the file's ids; that of number n is at n - 1.
    """

    def __init__(self, images: Iterable[Mapping[str, Any]], categories: Iterable[Mapping[str, Any]]) -> None:
        self.image_ids = _sorted_ids(images)
        self.category_ids = _sorted_ids(categories)
        self._images = {value: number for number, value in enumerate(self.image_ids, start=1)}
        self._categories = {value: number for number, value in enumerate(self.category_ids, start=1)}

    def image_numbers(self, ids: Iterable[Any]) -> list[int]:
        """Numbers of images that the file has."""
        return [self._images[value] for value in ids]

    def category_numbers(self, ids: Iterable[Any]) -> list[int]:
        """Numbers of the categories, without those that the file does not have."""
        return [self._categories[value] for value in ids if value in self._categories]

    def images(self, entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{**entry, "id": self._images[entry["id"]]} for entry in entries]

    def categories(self, entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{**entry, "id": self._categories[entry["id"]]} for entry in entries]

    def annotations(self, entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The annotations of known images and categories, in the order of the file, complete: those without "area" get
        that of their box, those without "iscrowd" are no crowds."""
        images, categories = self._images, self._categories
        numbered: list[dict[str, Any]] = []
        for entry in entries:
            image, category = images.get(entry["image_id"]), categories.get(entry["category_id"])
            if image is None or category is None:
                continue
            each = {**entry, "id": len(numbered) + 1, "image_id": image, "category_id": category}
            each["iscrowd"] = int(entry.get("iscrowd") or 0)
            each["area"] = area_of(entry)
            numbered.append(each)
        return numbered

    def results(self, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Detections in COCO's result format, with what the scorers need of them.

        Raises:
            ValueError: one is of an image or a category that the file does not have.
        """
        images, categories = self._images, self._categories
        numbered: list[dict[str, Any]] = []
        for number, entry in enumerate(entries, start=1):
            image, category = images.get(entry["image_id"]), categories.get(entry["category_id"])
            if image is None or category is None:
                key = "image_id" if image is None else "category_id"
                raise InvalidInputError(
                    f"detection {number - 1} has {key} {printable(entry[key])}, which the annotations do not have"
                )
            _, _, width, height = entry["bbox"]
            numbered.append(
                {
                    **entry,
                    "id": number,
                    "image_id": image,
                    "category_id": category,
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
        return numbered


def _sorted_ids(entries: Iterable[Mapping[str, Any]]) -> list[Any]:
    return sorted(dict.fromkeys(entry["id"] for entry in entries), key=id_order)
