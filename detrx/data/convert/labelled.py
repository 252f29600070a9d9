"""What readers of other formats return, its COCO form, and the collection of what they cannot read."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from detrx.atomic import write_atomically
from detrx.data.images import image_sizes

from .files import DatasetConversionError

__all__ = [
    "Labelled",
    "LabelledImage",
    "ReadErrors",
    "as_coco",
    "checked",
    "sizes_of_images",
    "write_coco_files",
]

_SHOWN = 20

Box = tuple[float, float, float, float]


@dataclasses.dataclass
class LabelledImage:
    """An image file, its (width, height), and its objects: class index, box XYWH in pixels, whether it is a crowd."""

    path: Path
    size: tuple[int, int]
    objects: list[tuple[int, Box, bool]]


@dataclasses.dataclass
class Labelled:
    """A dataset: its folder, class names, and images by split."""

    root: Path
    classes: list[str]
    splits: dict[str, list[LabelledImage]]


class ReadErrors:
    """Collects what is wrong with files, so that one run tells all of it."""

    def __init__(self) -> None:
        self.count = 0
        self._shown: list[str] = []

    def add(self, file: str | os.PathLike, line: int | None, reason: str) -> None:
        self.count += 1
        if len(self._shown) < _SHOWN:
            self._shown.append(f"{os.fspath(file)}:{line}: {reason}" if line else f"{os.fspath(file)}: {reason}")

    def raise_any(self) -> None:
        """Raise a DatasetConversionError if there are any."""
        if self.count:
            if self.count == 1:
                raise DatasetConversionError(f"{self._shown[0]}; nothing is written")
            more = [f"and {self.count - len(self._shown)} more"] if self.count > len(self._shown) else []
            raise DatasetConversionError("\n".join([f"{self.count} problems, nothing is written", *self._shown, *more]))


def checked(dataset: Labelled, source: str) -> Labelled:
    """The dataset, if each of its splits has images, and there are any splits.

    Raises:
        DatasetConversionError: there is nothing to convert, or nothing in a split.
    """
    empty = [split for split, images in dataset.splits.items() if not images]
    if not dataset.splits or len(empty) == len(dataset.splits):
        raise DatasetConversionError(f"there are no images in {source}")
    if empty:
        others = " ".join(split for split in dataset.splits if split not in empty)
        raise DatasetConversionError(
            f"split {empty[0]!r} of {source} has no images; --splits {others} converts the others"
        )
    return dataset


def sizes_of_images(
    paths: Sequence[Path], problems: ReadErrors, workers: int
) -> dict[Path, tuple[tuple[int, int], tuple[int, int]]]:
    """Width and height of image files, upright and as stored (see `image_sizes`); only their headers are read."""

    def look(path: Path) -> tuple[tuple[int, int], tuple[int, int]] | str:
        try:
            return image_sizes(path)
        except (FileNotFoundError, ValueError) as error:
            return str(error).removeprefix(f"image {path} ")

    sizes = {}
    with ThreadPool(workers) as pool:
        found = tqdm(pool.imap(look, paths, chunksize=16), total=len(paths), desc="image sizes", unit="img")
        for path, size in zip(paths, found, strict=True):
            if isinstance(size, str):
                problems.add(path, None, size)
            else:
                sizes[path] = size
    return sizes


def write_coco_files(dataset: Labelled, folder: Path, overwrite: bool = False) -> dict[str, Path]:
    """Write SPLIT.json into a folder for each split of a dataset, and return the paths by split.

    Raises:
        DatasetConversionError: one of the files exists, and `overwrite` is not given.
    """
    files = {split: folder / f"{split}.json" for split in dataset.splits}
    existing = [file for file in files.values() if file.exists()]
    if existing and not overwrite:
        raise DatasetConversionError(f"{existing[0]} exists already; --overwrite replaces it")
    folder.mkdir(parents=True, exist_ok=True)
    for split, file in files.items():
        _write(file, json.dumps(as_coco(dataset.splits[split], dataset.classes, dataset.root)))
    return files


def _write(file: Path, text: str) -> None:
    write_atomically(file, lambda stream: stream.write(text.encode()))


def as_coco(images: Iterable[LabelledImage], classes: Sequence[str], root: Path) -> dict[str, Any]:
    """The content of a COCO file: ids count from 1, file names are relative to `root`, boxes have 3 decimals."""
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k, "name": name} for k, name in enumerate(classes, start=1)],
    }
    for image_id, image in enumerate(images, start=1):
        name = Path(os.path.relpath(image.path, root)).as_posix()
        width, height = image.size
        content["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
        for label, box, crowd in image.objects:
            x, y, w, h = (round(value, 3) for value in box)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [x, y, w, h],
                    "area": round(w * h, 3),
                    "iscrowd": int(crowd),
                }
            )
    return content
