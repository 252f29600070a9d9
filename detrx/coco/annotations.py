"""The parser of COCO annotation files: their content as dataset dicts, and everything that is wrong with it."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import pycocotools.mask as mask_util

from detrx.coco.problems import Findings, Problem, printable

__all__ = ["LARGEST_SIDE", "is_box", "number_classes", "parse_categories", "parse_coco"]

_KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
LARGEST_SIDE = 2**24  # beyond any image, and exact in float32


def parse_coco(
    content: Any, image_root: str | os.PathLike, box_mode: Any, findings: Findings, with_ids: bool = False
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Dataset dicts of the content of a COCO file. Entries with errors are left out and reported.

    Args:
        content: what the JSON file holds, of any type.
        image_root: folder that its file names are relative to.
        box_mode: the `bbox_mode` of the annotations: Detectron2's `BoxMode.XYWH_ABS`.
        findings: gets all errors and warnings about the content (none about image files).
        with_ids: give each annotation its `id`, too.

    Returns:
        Dataset dicts ordered by image id (`file_name`, `height`, `width`, `image_id`, `annotations` with `bbox` XYWH in
        pixels, `bbox_mode`, `category_id` as in the file, `iscrowd` and `segmentation` if given), and the categories:
        id -> name, ordered by id.
    """
    categories = parse_categories(content, findings)
    if not isinstance(content, dict):
        return [], {}
    images = _images(_entries(content, "images", findings), findings)
    annotations: Iterator[tuple[int, dict[str, Any]]] = iter(())
    if "annotations" in content:  # files for tests without public annotations have none
        annotations = _entries(content, "annotations", findings)
    by_image = _annotations(annotations, images, categories, box_mode, findings, with_ids)

    records = []
    for image_id in sorted(images, key=lambda key: (isinstance(key, str), key)):
        image = images[image_id]
        records.append(
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                "height": int(image["height"]),
                "width": int(image["width"]),
                "image_id": image_id,
                "annotations": by_image[image_id],
            }
        )
    return records, categories


def parse_categories(content: Any, findings: Findings) -> dict[int, str]:
    """Only the categories of a COCO file: id -> name, ordered by id. Entries with errors are left out and reported."""
    if not isinstance(content, dict):
        findings.add(Problem.FILE, f"expected an object with {', '.join(_KEYS)}, got a {type(content).__name__}")
        return {}
    return dict(sorted(_categories(_entries(content, "categories", findings), findings).items()))


def number_classes(records: list[dict[str, Any]], category_ids: Iterable[int]) -> dict[int, int]:
    """Give the annotations of dataset dicts class indices, 0, 1, ... in the order of `category_ids`, in place.

    Returns:
        Category id -> class index.
    """
    index_of = {category_id: index for index, category_id in enumerate(category_ids)}
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = index_of[annotation["category_id"]]
    return index_of


def is_box(box: Any) -> bool:
    """Whether this is a list or tuple of four finite numbers."""
    return isinstance(box, (list, tuple)) and len(box) == 4 and all(_is_finite(value) for value in box)


def _entries(content: dict[str, Any], section: str, findings: Findings) -> Iterator[tuple[int, dict[str, Any]]]:
    """Position and value of each entry that has all keys."""
    entries = content.get(section)
    if not isinstance(entries, list):
        findings.add(Problem.FILE, f"has no list {section!r}")
        return
    if not entries and section != "annotations":
        findings.add(Problem.FILE, f"its list {section!r} is empty")
    keys = _KEYS[section]
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            findings.add(Problem.ENTRY, f"{section}[{position}] is no object: {printable(entry)}")
            continue
        missing = [key for key in keys if key not in entry]
        if missing:
            findings.add(Problem.ENTRY, f"{section}[{position}] has no {missing[0]!r}")
            continue
        yield position, entry


def _categories(entries: Iterator[tuple[int, dict[str, Any]]], findings: Findings) -> dict[int, str]:
    categories: dict[int, str] = {}
    names = set()
    for position, entry in entries:
        category_id, name = _whole(entry["id"]), entry["name"]
        if category_id is None or not isinstance(name, str):
            key, kind = ("id", "a whole number") if category_id is None else ("name", "text")
            findings.add(Problem.ENTRY, f"categories[{position}] has {key} {printable(entry[key])}, expected {kind}")
            continue
        if category_id in categories:
            names_of = f"{printable(categories[category_id])} and {printable(name)}"
            findings.add(Problem.CATEGORY_ID_TWICE, f"category id {category_id} occurs twice: {names_of}")
            continue
        if name in names:
            findings.add(Problem.CATEGORY_NAME_TWICE, f"category name {printable(name)}")
        names.add(name)
        categories[category_id] = name
    return categories


def _images(entries: Iterator[tuple[int, dict[str, Any]]], findings: Findings) -> dict[int | str, dict[str, Any]]:
    images: dict[int | str, dict[str, Any]] = {}
    files: set[str] = set()
    for position, entry in entries:
        image_id, name = _image_id(entry["id"]), entry["file_name"]
        where = f"images[{position}]"
        if image_id is None:
            findings.add(Problem.ENTRY, f"{where} has id {printable(entry['id'])}, expected a whole number or text")
        elif not isinstance(name, str) or not name or "\0" in name:
            findings.add(Problem.ENTRY, f"{where} has file_name {printable(name)}, expected the name of a file")
        elif not (_is_side(entry["width"]) and _is_side(entry["height"])):
            size = f"width {printable(entry['width'])} and height {printable(entry['height'])}"
            findings.add(Problem.ENTRY, f"{where} ({printable(name)}) has {size}, expected positive whole numbers")
        elif image_id in images:
            files_of = f"{printable(images[image_id]['file_name'])} and {printable(name)}"
            findings.add(Problem.IMAGE_ID_TWICE, f"image id {printable(image_id)} occurs twice: {files_of}")
        else:
            if name in files:
                findings.add(Problem.FILE_NAME_TWICE, f"image file {printable(name)}")
            files.add(name)
            images[image_id] = entry
    return images


def _annotations(
    entries: Iterator[tuple[int, dict[str, Any]]],
    images: dict[int | str, dict[str, Any]],
    categories: dict[int, str],
    box_mode: Any,
    findings: Findings,
    with_ids: bool,
) -> defaultdict[int | str, list[dict[str, Any]]]:
    by_image: defaultdict[int | str, list[dict[str, Any]]] = defaultdict(list)
    seen: set[int] = set()
    for position, entry in entries:
        annotation_id, category_id = _whole(entry["id"]), _whole(entry["category_id"])
        image_id, box, crowd = _image_id(entry["image_id"]), entry["bbox"], entry.get("iscrowd", 0)
        if annotation_id is None:
            problem = f"annotations[{position}] has id {printable(entry['id'])}, expected a whole number"
            findings.add(Problem.ENTRY, problem)
            continue
        if annotation_id in seen:
            findings.add(Problem.ANNOTATION_ID_TWICE, f"annotation id {annotation_id} occurs twice")
            continue
        seen.add(annotation_id)
        what = f"annotation {annotation_id}"
        if image_id not in images:
            why = f"{what} refers to image {printable(entry['image_id'])}, which is not in 'images'"
            findings.add(Problem.STRAY_ANNOTATION, why)
            continue
        what += f" of image {printable(images[image_id]['file_name'])}"
        if category_id not in categories:
            why = f"{what} has category_id {printable(entry['category_id'])}, which is not in 'categories'"
            findings.add(Problem.UNKNOWN_CATEGORY, why)
        elif not is_box(box):
            findings.add(Problem.BAD_BOX, f"{what} has bbox {printable(box)}, expected four finite numbers")
        elif crowd not in (0, 1):
            findings.add(Problem.ENTRY, f"{what} has iscrowd {printable(crowd)}, expected 0 or 1")
        elif entry.get("ignore", 0) not in (0, None):
            findings.add(Problem.IGNORE, f"{what} has ignore {printable(entry['ignore'])}")
        else:
            if annotation_id == 0:
                findings.add(Problem.ANNOTATION_ID_0, what)
            if "area" not in entry or "iscrowd" not in entry:
                findings.add(Problem.NO_AREA_KEY, what)
            annotation = {"bbox": box, "bbox_mode": box_mode, "category_id": category_id}
            if "iscrowd" in entry:
                annotation["iscrowd"] = int(crowd)
            if with_ids:
                annotation["id"] = annotation_id
            if entry.get("segmentation"):
                try:
                    annotation["segmentation"] = _segmentation(entry["segmentation"])
                except Exception as error:  # pycocotools has no types of its own for what it refuses
                    findings.add(Problem.ENTRY, f"{what} has a segmentation that cannot be read: {printable(error)}")
                    continue
                if not annotation["segmentation"]:
                    findings.add(Problem.NO_POLYGON, what)
                    continue
            by_image[image_id].append(annotation)
    return by_image


def _segmentation(segmentation: Any) -> Any:
    """As Detectron2 does: the polygons that have three points, possibly none, or a compressed run-length encoding."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return mask_util.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    return [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]


def _whole(value: Any) -> int | None:
    """A number without fraction as int (some programs write 3.0), or None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _image_id(value: Any) -> int | str | None:
    return value if isinstance(value, str) else _whole(value)


def _is_side(value: Any) -> bool:
    side = _whole(value)
    return side is not None and 0 < side <= LARGEST_SIDE


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -1e30 < value < 1e30 and math.isfinite(value)  # compared first: huge integers are no floats
