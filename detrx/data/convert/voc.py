"""Pascal VOC datasets: one XML file per image."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from tqdm import tqdm

from detrx.data.images import IMAGE_SUFFIXES
from detrx.errors import InvalidInputError

from .labelled import Box, DatasetConversionError, Labelled, LabelledImage, ReadErrors, sizes_of_images

__all__ = ["DIFFICULT", "VOC_CLASSES", "read_voc"]

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
DIFFICULT = ("crowd", "keep", "drop")
_SPLITS = ("train", "val", "trainval", "test")
_LINE = "line of the file"  # an attribute with a name that no XML can have

_Object = tuple[str, Box, bool]


def read_voc(
    sources: Sequence[str | os.PathLike],
    splits: Sequence[str] | None = None,
    difficult: str = "crowd",
    zero_based: bool = False,
    classes: Sequence[str] | None = None,
    workers: int = 1,
) -> Labelled:
    """Read a dataset in the layout of Pascal VOC.

    Coordinates in VOC count pixels from 1, and the last pixel belongs to the box: xmin = 1, xmax = 10 is the box from
    x = 0 to x = 10.

    Args:
        sources: folders such as VOCdevkit/VOC2007, with Annotations, JPEGImages and ImageSets/Main, whose images are
            put together by split; or VOCdevkit itself, for all of those in it. Without ImageSets, all annotations are
            the split "train"; without Annotations, XML files and images are expected in the folder itself.
        splits: which to read: names of ImageSets/Main/*.txt; None: all there are of train, val, trainval, test.
        difficult: "crowd" makes objects marked as difficult crowds, which training leaves out, and evaluation neither
            demands nor punishes (as VOC's own evaluation); "keep" treats them as all others; "drop" forgets them.
        zero_based: coordinates count from 0, and xmax, ymax are where the box ends, as some annotation programs write.
        classes: class names in order; None: those of VOC if there are no others, else all found, by alphabet.
        workers: threads that look at image files.

    Raises:
        FileNotFoundError: a folder, or the file of a split, does not exist.
        DatasetConversionError: anything cannot be read; the message says what, by file and line.
    """
    if difficult not in DIFFICULT:
        raise InvalidInputError(f"difficult must be one of {', '.join(DIFFICULT)}, got {difficult!r}")
    folders = [folder for source in sources for folder in _years(Path(source))]
    problems = ReadErrors()
    files: dict[str, list[Path]] = {}
    for folder in folders:
        for split, xmls in _splits(folder, splits, problems).items():
            files.setdefault(split, []).extend(xmls)
    if missing := [split for split in splits or () if split not in files]:
        raise FileNotFoundError(f"there is no ImageSets/Main/{missing[0]}.txt in {', '.join(map(str, folders))}")

    pictures = {folder: _pictures(folder) for folder in folders}
    paths: dict[Path, Path] = {}
    contents: dict[Path, tuple[tuple[int, int] | None, list[_Object]]] = {}
    for xml in tqdm(dict.fromkeys(xml for xmls in files.values() for xml in xmls), desc="annotations", unit="file"):
        folder = xml.parent.parent if xml.parent.name == "Annotations" else xml.parent
        picture = pictures[folder].get(xml.stem)
        if picture is None:
            problems.add(xml, None, f"there is no image {xml.stem}.jpg (or of another type)")
        elif (content := _read(xml, zero_based, problems)) is not None:
            paths[xml], contents[xml] = picture, content

    sizes = sizes_of_images(list(paths.values()), problems, workers)
    found = {name for _, objects in contents.values() for name, _, _ in objects}
    names = _classes(found, classes)
    images = {}
    for xml, (annotated, objects) in contents.items():
        if paths[xml] not in sizes:
            continue
        upright, stored = sizes[paths[xml]]
        if annotated not in (None, upright, stored):
            problems.add(xml, None, f"size is {_by(annotated)}, but {paths[xml]} is {_by(upright)}")
        labelled = [
            (names.index(name), box, hard and difficult == "crowd")
            for name, box, hard in objects
            if not (hard and difficult == "drop")
        ]
        images[xml] = LabelledImage(paths[xml], annotated or upright, labelled)
    problems.raise_any()
    root = folders[0] if len(folders) == 1 else Path(os.path.commonpath(folders))
    return Labelled(root, names, {split: [images[xml] for xml in xmls] for split, xmls in files.items()})


def _years(source: Path) -> list[Path]:
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is no folder")
    if (source / "Annotations").is_dir():
        return [source]
    years = sorted(path for path in source.glob("VOC*") if (path / "Annotations").is_dir())
    if not years and not any(source.glob("*.xml")):
        raise FileNotFoundError(f"{source} has no Annotations, no VOC*/Annotations, and no XML files")
    return years or [source]


def _splits(folder: Path, splits: Sequence[str] | None, problems: ReadErrors) -> dict[str, list[Path]]:
    annotations = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    lists = folder / "ImageSets" / "Main"
    if not lists.is_dir():
        return {"train": sorted(annotations.glob("*.xml"))}
    files: dict[str, list[Path]] = {}
    for split in splits or _SPLITS:
        if not (lists / f"{split}.txt").is_file():
            continue
        files[split] = []
        for number, line in enumerate(
            (lists / f"{split}.txt").read_text(errors="replace", encoding="utf-8").splitlines(), start=1
        ):
            if line.strip():
                xml = annotations / f"{line.split()[0]}.xml"
                if xml.is_file():
                    files[split].append(xml)
                else:
                    problems.add(lists / f"{split}.txt", number, f"there is no {xml}")
    return files


def _pictures(folder: Path) -> dict[str, Path]:
    """Image files by their name without suffix."""
    places = [folder / name for name in ("JPEGImages", "images") if (folder / name).is_dir()] or [folder]
    return {path.stem: path for path in sorted(places[0].iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}


def _classes(found: set[str], classes: Sequence[str] | None) -> list[str]:
    if classes is None:
        return list(VOC_CLASSES) if found <= set(VOC_CLASSES) else sorted(found)
    if unknown := sorted(found - set(classes)):
        raise DatasetConversionError(
            f"there are objects of {', '.join(unknown)}, which are not among the classes given"
        )
    return list(classes)


def _read(xml: Path, zero_based: bool, problems: ReadErrors) -> tuple[tuple[int, int] | None, list[_Object]] | None:
    """Size, if there is one, and objects of an annotation file; None, and a problem, if it is no XML."""
    try:
        tree = _parse(xml)
    except expat.ExpatError as error:
        problems.add(xml, error.lineno, f"not valid XML ({expat.ErrorString(error.code)})")
        return None
    except (ValueError, LookupError) as error:  # an encoding that it does not know
        problems.add(xml, 1, f"not valid XML ({error})")
        return None
    objects = []
    for entry in tree.findall("object"):
        try:
            objects.append(_object(entry, zero_based))
        except _MalformedError as error:
            problems.add(xml, error.line, str(error))
    try:
        size = tree.find("size")
        width, height = (0, 0) if size is None else (int(_number(size, key)) for key in ("width", "height"))
    except _MalformedError as error:
        problems.add(xml, error.line, str(error))
        return None
    return ((width, height) if width > 0 and height > 0 else None), objects  # some programs write 0


class _MalformedError(ValueError):
    def __init__(self, element: ElementTree.Element, reason: str) -> None:
        super().__init__(reason)
        self.line = int(element.attrib[_LINE])


def _parse(xml: Path) -> ElementTree.Element:
    """The root of an XML file, whose elements know their lines."""
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        builder.start(tag, {**attributes, _LINE: str(parser.CurrentLineNumber)})

    parser.StartElementHandler, parser.EndElementHandler = start, builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(xml.read_bytes(), True)
    return builder.close()


def _object(entry: ElementTree.Element, zero_based: bool) -> _Object:
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise _MalformedError(entry, "object without a name")
    corners = entry.find("bndbox")
    if corners is None:
        raise _MalformedError(entry, f"object {name!r} without a bndbox")
    x1, y1, x2, y2 = (_number(corners, key) for key in ("xmin", "ymin", "xmax", "ymax"))
    if not zero_based:
        x1, y1 = x1 - 1, y1 - 1
    if x2 < x1 or y2 < y1:
        raise _MalformedError(corners, f"object {name!r} ends before it begins")
    difficult = entry.find("difficult")
    hard = "0" if difficult is None else (difficult.text or "0").strip()
    if difficult is not None and hard not in ("0", "1"):
        raise _MalformedError(difficult, f"difficult is {hard!r}, expected 0 or 1")
    return name, (x1, y1, x2 - x1, y2 - y1), hard == "1"


def _number(parent: ElementTree.Element, key: str) -> float:
    element = parent.find(key)
    if element is None:
        raise _MalformedError(parent, f"{parent.tag} without {key}")
    try:
        value = float(element.text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _MalformedError(element, f"{key} is {element.text!r}, expected a number")
    return value


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
