"""YOLO datasets: one text file per image, with a line per object and coordinates relative to the image's size."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from detrx.data.images import IMAGE_SUFFIXES
from detrx.errors import InvalidInputError

from .files import SPLIT_FOLDERS, DatasetConversionError, files_in, listed_names, read_classes, read_text, spellings
from .labelled import Box, Labelled, LabelledImage, ReadErrors, checked, sizes_of_images

__all__ = ["read_yolo"]

_SPLITS = ("train", "val", "test")
_TOLERANCE = 0.01  # of the image's size, by which coordinates may exceed it


@dataclasses.dataclass
class _Layout:
    root: Path
    classes: list[str]
    splits: dict[str, list[Path]]
    keypoint_values: int = 0  # numbers after the box in each line


def read_yolo(source: str | os.PathLike, splits: Sequence[str] | None = None, workers: int = 1) -> Labelled:
    """Read a dataset in the layout of Ultralytics.

    `source` is a data.yaml (`path`, `train`, `val`, `test`, `names` as list or dict), or a folder that holds one; or a
    folder without it, but with a classes.txt: then the images are in images/ or in its subfolders train, val (or valid)
    and test, which are splits. A split is a folder, searched with its subfolders (links are followed), a text file that
    lists images, or a list of these. The labels of a/images/b/c.jpg are in a/labels/b/c.txt, or beside the image. Each
    line is "class x y w h" (centre and size), or "class x1 y1 x2 y2 x3 y3 ..." (a polygon, of which the bounding box is
    taken), relative to the upright image. An image without a label file has no objects.

    Args:
        splits: which to read; None reads all that the dataset has.
        workers: threads that look at image files.

    Raises:
        FileNotFoundError: `source`, or what its data.yaml names, does not exist.
        DatasetConversionError: anything cannot be read, or there is nothing to read; the message says what, by file and
            line.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    problems = ReadErrors()
    layout = _find_layout(source, splits, problems)
    if splits is not None and (unknown := [split for split in splits if split not in layout.splits]):
        raise DatasetConversionError(
            f"{source} has no split {unknown[0]!r}; it has {', '.join(layout.splits) or 'none'}"
        )
    paths = list(dict.fromkeys(path for files in layout.splits.values() for path in files))
    sizes = sizes_of_images(paths, problems, workers)
    images = {path: _read_image(path, size, layout, problems) for path, (size, _) in sizes.items()}
    problems.raise_any()
    if paths and not any(_label_file(path).is_file() for path in paths):
        raise DatasetConversionError(f"none of {len(paths)} images has a label file, such as {_label_file(paths[0])}")
    read = {split: [images[path] for path in files] for split, files in layout.splits.items()}
    return checked(Labelled(layout.root, layout.classes, read), str(source))


def _find_layout(source: Path, splits: Sequence[str] | None, problems: ReadErrors) -> _Layout:
    if source.is_file():
        return _from_yaml(source, splits, problems)
    yamls = sorted(path for path in source.iterdir() if path.suffix.lower() in (".yaml", ".yml"))
    if len(yamls) > 1:
        yamls = [path for path in yamls if path.stem in ("data", "dataset")] or yamls
    if len(yamls) == 1:
        return _from_yaml(yamls[0], splits, problems)
    if yamls:
        raise DatasetConversionError(f"{source} has several YAML files: give one of {', '.join(map(str, yamls))}")
    names = next((path for path in (source / "classes.txt", source / "labels" / "classes.txt") if path.is_file()), None)
    if names is None:
        raise DatasetConversionError(f"{source} has neither a data.yaml nor a classes.txt")
    classes = read_classes(names)
    folder = source / "images" if (source / "images").is_dir() else source
    places: dict[str, list[Path]] = {}
    for name, split in SPLIT_FOLDERS.items():
        if (folder / name).is_dir():
            places.setdefault(split, []).append(folder / name)
    layout = _Layout(source, classes, {})
    for split, parts in (places or {"train": [folder]}).items():
        if not splits or split in splits:
            with _other_splits_named(split, splits or places):
                layout.splits[split] = [image for part in parts for image in _in_folder(part)]
    return layout


def _from_yaml(file: Path, splits: Sequence[str] | None, problems: ReadErrors) -> _Layout:
    try:
        text = read_text(file)
        content = yaml.safe_load(text)
        names = yaml.load(text, yaml.BaseLoader)  # leaves all as text: a class can be called no, 1.0 or null
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else f"{file}"
        raise DatasetConversionError(f"{where}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(content, dict):
        raise DatasetConversionError(
            f"{file}: expected keys such as train, val and names, got {type(content).__name__}"
        )
    classes = _names(content, names, file)
    root = file.parent / str(content.get("path") or "")
    if not root.is_dir():
        raise FileNotFoundError(f"{file}: path {content['path']!r} leads to {root}, which does not exist")
    layout = _Layout(root, classes, {}, _keypoint_values(content, file))
    for split in _SPLITS:
        parts = content.get(split)
        if not parts or (splits is not None and split not in splits):
            continue
        parts = parts if isinstance(parts, list) else [parts]
        with _other_splits_named(split, [name for name in splits or _SPLITS if content.get(name)]):
            files = [image for part in parts for image in _images_of(part, split, root, file, problems)]
        layout.splits[split] = list(dict.fromkeys(files))
    return layout


@contextlib.contextmanager
def _other_splits_named(split: str, splits: Iterable[str]) -> Iterator[None]:
    """Let an error that says what is missing for a split also say how the others can be converted without it."""
    try:
        yield
    except FileNotFoundError as error:
        others = " ".join(name for name in splits if name != split)
        advice = f"; --splits {others} converts the others" if others else ""
        raise FileNotFoundError(f"{error}{advice}") from error


def _names(content: dict[str, Any], texts: dict[str, Any], file: Path) -> list[str]:
    """Class names of a data.yaml, given its values, and all of it as text."""
    names = content.get("names")
    if isinstance(names, dict) and names:
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DatasetConversionError(f"{file}: names has the numbers {list(names)}, expected 0 to {len(names) - 1}")
        by_number = dict(zip(names, texts["names"].values(), strict=True))
        named = [by_number[k] for k in range(len(names))]
    elif isinstance(names, list) and names:
        named = texts["names"]
    else:
        raise DatasetConversionError(f"{file}: names is {names!r}, expected a list of class names, or a dict by number")
    if content.get("nc", len(named)) != len(named):
        raise DatasetConversionError(f"{file}: nc is {content['nc']!r}, but there are {len(named)} names")
    return [str(name) for name in named]


def _keypoint_values(content: dict[str, Any], file: Path) -> int:
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if not isinstance(shape, list) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise DatasetConversionError(f"{file}: kpt_shape is {shape!r}, expected two numbers")
    return math.prod(shape)


def _images_of(part: Any, split: str, root: Path, file: Path, problems: ReadErrors) -> list[Path]:
    """Images in a folder, or listed in a text file, both relative to the root."""
    places = []
    for name in spellings(str(part)):
        places.append(root / name)
        if name.startswith("../"):  # exports of Roboflow say ../train/images for train/images
            places.append(root / name.removeprefix("../"))
    place = next((place for place in places if place.exists()), None)
    if place is None:
        raise FileNotFoundError(f"{file}: {split} is {part!r}, but {places[0]} does not exist")
    return _in_folder(place) if place.is_dir() else _listed(place, root, problems)


def _in_folder(folder: Path) -> list[Path]:
    files = files_in(folder, IMAGE_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"there is no image in {folder}")
    return files


def _listed(file: Path, root: Path, problems: ReadErrors) -> list[Path]:
    images = []
    for number, line in listed_names(file):
        places = [folder / name for name in spellings(line) for folder in (root, file.parent)]
        image = next((place for place in places if place.is_file()), None)
        if image is None:
            problems.add(file, number, f"image {line} does not exist")
        else:
            images.append(image)
    return images


def _label_file(image: Path) -> Path:
    """The file that has the labels of an image, or, if there is none, would have them."""
    beside = image.with_suffix(".txt")
    parts = list(image.parts)
    for k in range(len(parts) - 2, -1, -1):
        if parts[k] == "images":
            parts[k] = "labels"
            break
    elsewhere = Path(*parts).with_suffix(".txt")
    return beside if beside.is_file() and not elsewhere.is_file() else elsewhere


def _read_image(path: Path, size: tuple[int, int], layout: _Layout, problems: ReadErrors) -> LabelledImage:
    image = LabelledImage(path, size, [])
    labels = _label_file(path)
    if not labels.is_file():
        return image
    try:
        lines = read_text(labels).splitlines()
    except DatasetConversionError as error:
        problems.add(labels, None, str(error).removeprefix(f"{labels}: "))
        return image
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            label, (x, y, w, h) = _parse(line, len(layout.classes), layout.keypoint_values)
        except ValueError as error:
            problems.add(labels, number, str(error))
            continue
        image.objects.append((label, (x * size[0], y * size[1], w * size[0], h * size[1]), False))
    return image


def _parse(line: str, num_classes: int, keypoint_values: int) -> tuple[int, Box]:
    """Class and box (XYWH, relative) of a line."""
    try:
        values = [float(text) for text in line.split()]
    except ValueError:
        raise InvalidInputError(f"expected numbers, got {line.strip()[:80]!r}") from None
    label, coordinates = values[0], values[1:]
    if not label.is_integer() or not 0 <= label < num_classes:
        raise InvalidInputError(f"class {line.split()[0]} is not one of 0 to {num_classes - 1}")
    if keypoint_values and len(coordinates) == 4 + keypoint_values:
        coordinates = coordinates[:4]
    if len(coordinates) != 4 and (len(coordinates) < 6 or len(coordinates) % 2):
        expected = "a class with x y w h, or with the points of a polygon"
        raise InvalidInputError(f"expected {expected}, got {len(values)} numbers")
    if not all(-_TOLERANCE <= value <= 1 + _TOLERANCE for value in coordinates):
        bad = next(value for value in coordinates if not -_TOLERANCE <= value <= 1 + _TOLERANCE)
        raise InvalidInputError(f"coordinate {bad:g} is not relative to the size of the image, from 0 to 1")
    if len(coordinates) == 4:
        x, y, w, h = coordinates
        if w < 0 or h < 0:
            raise InvalidInputError(f"width {w:g} and height {h:g} must not be negative")
        return int(label), (x - w / 2, y - h / 2, w, h)
    xs, ys = coordinates[::2], coordinates[1::2]
    return int(label), (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
