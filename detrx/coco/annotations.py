"""The parser of COCO annotation files: their content as dataset dicts, and everything that is wrong with it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import pycocotools.mask as mask_util

from detrx.coco.problems import Findings, Problem, printable
from detrx.coco.values import Id, id_order, is_box, is_finite, is_id, whole_number

__all__ = ["LARGEST_SIDE", "number_classes", "parse_categories", "parse_coco"]

_KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
LARGEST_SIDE = 2**24  # beyond any image, and exact in float32


def parse_coco(
    content: Any, image_root: str | os.PathLike, box_mode: Any, findings: Findings, with_ids: bool = False
) -> tuple[list[dict[str, Any]], dict[Id, str]]:
    """Dataset dicts of the content of a COCO file. Entries with errors are left out and reported.

    Args:
        content: what the JSON file holds, of any type.
        image_root: folder that its file names are relative to.
        box_mode: the `bbox_mode` of the annotations: Detectron2's `BoxMode.XYWH_ABS`.
        findings: gets all errors and warnings about the content (none about image files).
        with_ids: give each annotation its `id`, too.

    Returns:
        Dataset dicts ordered by image id (`file_name`, `height`, `width`, `image_id`, `annotations` with `bbox` XYWH in
        pixels, `bbox_mode`, `category_id`, `iscrowd` and `segmentation` if given), and the categories: id -> name,
        ordered by id. Ids are as in the file.
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
    for image_id in sorted(images, key=id_order):
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


def parse_categories(content: Any, findings: Findings) -> dict[Id, str]:
    """Only the categories of a COCO file: id -> name, ordered by id. Entries with errors are left out and reported."""
    if not isinstance(content, dict):
        findings.add(Problem.FILE, f"expected an object with {', '.join(_KEYS)}, got {type(content).__name__}")
        return {}
    categories = _categories(_entries(content, "categories", findings), findings)
    return dict(sorted(categories.items(), key=lambda each: id_order(each[0])))


def number_classes(records: list[dict[str, Any]], category_ids: Iterable[Id]) -> dict[Id, int]:
    """Give the annotations of dataset dicts class indices, 0, 1, ... in the order of `category_ids`, in place.

    Returns:
        Category id -> class index.
    """
    index_of = {category_id: index for index, category_id in enumerate(category_ids)}
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = index_of[annotation["category_id"]]
    return index_of


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


def _categories(entries: Iterator[tuple[int, dict[str, Any]]], findings: Findings) -> dict[Id, str]:
    categories: dict[Id, str] = {}
    names = set()
    for position, entry in entries:
        category_id, name = entry["id"], entry["name"]
        if not is_id(category_id) or not isinstance(name, str):
            key, kind = ("name", "text") if is_id(category_id) else ("id", "a whole number or text")
            findings.add(Problem.ENTRY, f"categories[{position}] has {key} {printable(entry[key])}, expected {kind}")
            continue
        if category_id in categories:
            names_of = f"{printable(categories[category_id])} and {printable(name)}"
            findings.add(Problem.CATEGORY_ID_TWICE, f"category id {printable(category_id)} occurs twice: {names_of}")
            continue
        if name in names:
            findings.add(Problem.CATEGORY_NAME_TWICE, f"category name {printable(name)}")
        names.add(name)
        categories[category_id] = name
    return categories


def _images(entries: Iterator[tuple[int, dict[str, Any]]], findings: Findings) -> dict[Id, dict[str, Any]]:
    images: dict[Id, dict[str, Any]] = {}
    files: set[str] = set()
    for position, entry in entries:
        image_id, name = entry["id"], entry["file_name"]
        where = f"images[{position}]"
        if not is_id(image_id):
            findings.add(Problem.ENTRY, f"{where} has id {printable(image_id)}, expected a whole number or text")
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
    images: dict[Id, dict[str, Any]],
    categories: dict[Id, str],
    box_mode: Any,
    findings: Findings,
    with_ids: bool,
) -> defaultdict[Id, list[dict[str, Any]]]:
    by_image: defaultdict[Id, list[dict[str, Any]]] = defaultdict(list)
    seen: set[Id] = set()
    for position, entry in entries:
        annotation_id, image_id = entry["id"], entry["image_id"]
        if not is_id(annotation_id):
            shown = f"annotations[{position}] has id {printable(annotation_id)}"
            findings.add(Problem.ENTRY, f"{shown}, expected a whole number or text")
        elif annotation_id in seen:
            findings.add(Problem.ANNOTATION_ID_TWICE, f"annotation id {printable(annotation_id)} occurs twice")
        elif not is_id(image_id) or image_id not in images:
            why = f"refers to image {printable(image_id)}, which is not in 'images'"
            findings.add(Problem.STRAY_ANNOTATION, f"annotation {printable(annotation_id)} {why}")
        elif found := _problem_of(entry, categories):
            findings.add(found[0], f"{_which(entry, images)} {found[1]}")
        else:
            for problem in _warnings_about(entry):
                findings.add(problem, _which(entry, images))
            annotation = {"bbox": entry["bbox"], "bbox_mode": box_mode, "category_id": entry["category_id"]}
            if "iscrowd" in entry:
                annotation["iscrowd"] = int(entry["iscrowd"] or 0)
            if with_ids:
                annotation["id"] = annotation_id
            if entry.get("segmentation"):
                try:
                    annotation["segmentation"] = _segmentation(entry["segmentation"])
                except Exception as error:  # pycocotools has no types of its own for what it refuses
                    findings.add(Problem.NO_POLYGON, f"{_which(entry, images)}: {printable(str(error))}")
            by_image[image_id].append(annotation)
        if is_id(annotation_id):
            seen.add(annotation_id)
    return by_image


def _which(entry: dict[str, Any], images: dict[Id, dict[str, Any]]) -> str:
    return f"annotation {printable(entry['id'])} of image {printable(images[entry['image_id']]['file_name'])}"


def _problem_of(entry: dict[str, Any], categories: dict[Id, str]) -> tuple[Problem, str] | None:
    """What is wrong with an annotation, apart from its ids."""
    category_id, box, crowd, area = entry["category_id"], entry["bbox"], entry.get("iscrowd"), entry.get("area")
    if not is_id(category_id) or category_id not in categories:
        why = f"has category_id {printable(category_id)}, which is not in 'categories'"
        return Problem.UNKNOWN_CATEGORY, why
    if not is_box(box):
        return Problem.BAD_BOX, f"has bbox {printable(box)}, expected four finite numbers"
    if crowd not in (0, 1, None):
        return Problem.ENTRY, f"has iscrowd {printable(crowd)}, expected 0 or 1"
    if area is not None and not is_finite(area):
        return Problem.ENTRY, f"has area {printable(area)}, expected a finite number"
    if entry.get("ignore", 0) not in (0, None):
        return Problem.IGNORE, f"has ignore {printable(entry['ignore'])}"
    return None


def _warnings_about(entry: dict[str, Any]) -> Iterator[Problem]:
    if entry["id"] == 0:
        yield Problem.ANNOTATION_ID_0
    if entry.get("area") is None or entry.get("iscrowd") is None:
        yield Problem.NO_AREA_KEY


def _segmentation(segmentation: Any) -> Any:
    """As Detectron2 does: the polygons that have three points, or a compressed run-length encoding.

    Raises:
        Exception: there is neither.
    """
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return mask_util.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    polygons = [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]
    if not polygons:
        raise ValueError("no polygon has three points")
    return polygons


def _is_side(value: Any) -> bool:
    side = whole_number(value)
    return side is not None and 0 < side <= LARGEST_SIDE
