"""Pascal VOC datasets: one XML file per image."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from tqdm import tqdm

from detrx.errors import InvalidInputError

from .files import DatasetConversionError
from .labelled import Box, Labelled, LabelledImage, ReadErrors, checked, sizes_of_images
from .voc_layout import annotation_name, annotations_by_split, pictures_by_name, voc_folders

__all__ = ["DIFFICULT", "VOC_CLASSES", "read_voc"]

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
DIFFICULT = ("crowd", "keep", "drop")
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
            the split "train"; without Annotations, XML files and images are expected in the folder itself, or, by
            split, in its subfolders train, val (or valid) and test.
        splits: which to read: names of ImageSets/Main/*.txt; None: all there are of train, val, trainval, test, or, if
            there is none of these, all lists there are.
        difficult: "crowd" makes objects marked as difficult crowds, which training leaves out, and evaluation neither
            demands nor punishes (as VOC's own evaluation); "keep" treats them as all others; "drop" forgets them.
        zero_based: coordinates count from 0, and xmax, ymax are where the box ends, as some annotation programs write.
        classes: class names in order; None: those of VOC if there are no others, else all found, by alphabet.
        workers: threads that look at image files.

    Raises:
        FileNotFoundError: a folder, or the file of a split, does not exist.
        DatasetConversionError: anything cannot be read, or there is nothing to read; the message says what, by file and
            line.
    """
    if difficult not in DIFFICULT:
        raise InvalidInputError(f"difficult must be one of {', '.join(DIFFICULT)}, got {difficult!r}")
    unique = {os.path.realpath(folder): folder for source in sources for folder in voc_folders(Path(source))}
    folders = list(unique.values())
    problems = ReadErrors()
    files: dict[str, dict[Path, Path]] = {}
    for folder in folders:
        for split, xmls in annotations_by_split(folder, splits, problems).items():
            files.setdefault(split, {}).update(dict.fromkeys(xmls, folder))
    if missing := [split for split in splits or () if split not in files]:
        raise FileNotFoundError(f"there is no ImageSets/Main/{missing[0]}.txt in {', '.join(map(str, folders))}")

    pictures = {folder: pictures_by_name(folder) for folder in folders}
    paths: dict[Path, Path] = {}
    contents: dict[Path, _Content] = {}
    folder_of = {xml: folder for xmls in files.values() for xml, folder in xmls.items()}
    for xml, folder in tqdm(folder_of.items(), desc="annotations", unit="file"):
        if (content := _read(xml, zero_based, problems)) is None:
            continue
        name = annotation_name(xml, folder)
        found = pictures[folder].get(name) or pictures[folder].get(os.path.basename(name), [])
        if len(found) > 1:  # x.jpg and x.png: the annotation says which
            found = [picture for picture in found if picture.name == content.file_name] or found
        if not found:
            problems.add(xml, None, f"there is no image {name}.jpg (or of another type)")
        elif len(found) > 1:
            problems.add(xml, None, f"it could be of any of {', '.join(map(str, found))}")
        else:
            paths[xml], contents[xml] = found[0], content

    sizes = sizes_of_images(list(paths.values()), problems, workers)
    names = _classes({name for content in contents.values() for name, _, _ in content.objects}, classes)
    images = {}
    for xml, content in contents.items():
        if paths[xml] not in sizes:
            continue
        upright, stored = sizes[paths[xml]]
        if content.size not in (None, upright, stored):
            problems.add(xml, None, f"size is {_by(content.size)}, but {paths[xml]} is {_by(upright)}")
        labelled = [
            (names.index(name), box, hard and difficult == "crowd")
            for name, box, hard in content.objects
            if not (hard and difficult == "drop")
        ]
        images[xml] = LabelledImage(paths[xml], content.size or upright, labelled)
    problems.raise_any()
    root = folders[0] if len(folders) == 1 else Path(os.path.commonpath([os.path.abspath(each) for each in folders]))
    return checked(
        Labelled(root, names, {split: [images[xml] for xml in xmls] for split, xmls in files.items()}),
        ", ".join(map(str, sources)),
    )


def _classes(found: set[str], classes: Sequence[str] | None) -> list[str]:
    if classes is None:
        return list(VOC_CLASSES) if found <= set(VOC_CLASSES) else sorted(found)
    if unknown := sorted(found - set(classes)):
        raise DatasetConversionError(
            f"there are objects of {', '.join(unknown)}, which are not among the classes given"
        )
    return list(classes)


@dataclasses.dataclass
class _Content:
    """What an annotation file says: the size of its image, if it gives one, its objects, and the name of the image."""

    size: tuple[int, int] | None
    objects: list[_Object]
    file_name: str


def _read(xml: Path, zero_based: bool, problems: ReadErrors) -> _Content | None:
    """The content of an annotation file; None, and a problem, if it is no XML."""
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
    known = (width, height) if width > 0 and height > 0 else None  # some programs write 0
    return _Content(known, objects, (tree.findtext("filename") or "").strip())


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
