"""COCO files as dataset dicts, with one clear error for whatever is wrong with the file."""

import contextlib
import difflib
import json
import math
import os
from collections.abc import Iterator
from typing import Any

from detrx.d2.data import DatasetCatalog, MetadataCatalog, load_coco_json
from detrx.d2.data import get_detection_dataset_dicts as _get_detection_dataset_dicts

_KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


def load_coco(json_file: str | os.PathLike, image_root: str | os.PathLike, name: str | None = None) -> list[dict]:
    """Read a COCO annotation file.

    Args:
        json_file: COCO "instances" annotations.
        image_root: folder that the file names in it are relative to.
        name: dataset name, whose metadata gets the class names; None leaves category ids as they are in the file.

    Returns:
        Dataset dicts: `file_name`, `height`, `width`, `image_id`, `annotations` (boxes XYWH in pixels).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its content is not what it should be; the message names the file and the first entry at fault.
    """
    with _clear_errors(os.fspath(json_file), name):
        records = load_coco_json(os.fspath(json_file), os.fspath(image_root), name)
        _check_boxes(records, os.fspath(json_file))
    return records


def get_detection_dataset_dicts(names: str | list[str], filter_empty: bool = True) -> list[dict]:
    """Detectron2's function of this name, with clear errors for unknown datasets and faulty annotation files.

    Args:
        names: one or several registered datasets with the same classes, to be concatenated.
        filter_empty: leave out images without annotations (other than crowds), as training wants.

    Raises:
        ValueError: a name is not registered, or the annotation file is faulty (see `load_coco`).
        FileNotFoundError: the annotation file of a dataset does not exist.
    """
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in DatasetCatalog:
            known = sorted(DatasetCatalog)
            near = difflib.get_close_matches(name, known, n=3) or known
            raise ValueError(f"dataset {name!r} is not registered; did you mean one of: {', '.join(near)}?")
    files = {name: MetadataCatalog.get(name).get("json_file") for name in names}
    with contextlib.ExitStack() as stack:
        for name, json_file in files.items():
            if json_file:
                stack.enter_context(_clear_errors(json_file, name))
        records = _get_detection_dataset_dicts(names, filter_empty=filter_empty)
    _check_boxes(records, ", ".join(str(json_file) for json_file in files.values()))
    return records


@contextlib.contextmanager
def _clear_errors(json_file: str, name: str | None) -> Iterator[None]:
    """Replace an exception from inside by one that says what is wrong with the file, if something is."""
    try:
        yield
    except Exception as error:
        if "://" in json_file:  # not a local file: nothing to look at here
            raise
        if not os.path.isfile(json_file):
            datasets = os.environ.get("DETECTRON2_DATASETS") or "datasets"
            raise FileNotFoundError(
                f"annotation file {json_file} of dataset {name!r} does not exist (DETECTRON2_DATASETS is {datasets!r})"
            ) from error
        problem = _find_problem(json_file, name)
        if problem is None:
            raise
        raise ValueError(f"annotation file {json_file}: {problem}") from error


def _find_problem(json_file: str, name: str | None) -> str | None:
    """The first thing that is wrong with a COCO file, in words."""
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, OSError) as error:
        return f"not valid JSON ({error})"
    if not isinstance(content, dict):
        return f"expected an object with {', '.join(_KEYS)}, got a {type(content).__name__}"
    for section, keys in _KEYS.items():
        if not isinstance(content.get(section), list):
            return f"has no list {section!r}"
        for position, entry in enumerate(content[section]):
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                return f"{section}[{position}] has no {missing[0]!r}"
    categories = {entry["id"]: entry["name"] for entry in content["categories"]}
    images = {entry["id"] for entry in content["images"]}
    seen = set()
    for entry in content["annotations"]:
        what = f"annotation {entry['id']!r} (image {entry['image_id']!r})"
        if entry["category_id"] not in categories:
            return f"{what} has category_id {entry['category_id']!r}, which is not in 'categories'"
        if entry["image_id"] not in images:
            return f"{what} refers to an image that is not in 'images'"
        if entry["id"] in seen:
            return f"annotation id {entry['id']!r} occurs twice"
        seen.add(entry["id"])
        if not _is_box(entry["bbox"]):
            return f"{what} has bbox {entry['bbox']!r}, expected four finite numbers"
    classes = MetadataCatalog.get(name).get("thing_classes") if name else None
    found = [categories[i] for i in sorted(categories)]
    if classes is not None and list(classes) != found:
        return f"its categories {found} are not the classes {list(classes)} that dataset {name!r} is registered with"
    return None


def _check_boxes(records: list[dict], source: str) -> None:
    for record in records:
        for annotation in record.get("annotations", ()):
            if not _is_box(annotation["bbox"]):
                raise ValueError(
                    f"{source}: image {record['image_id']} has bbox {annotation['bbox']}, expected four finite numbers"
                )


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, (list, tuple))
        and len(box) == 4
        and all(isinstance(v, (int, float)) and math.isfinite(v) for v in box)
    )
