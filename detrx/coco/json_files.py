"""JSON files of annotations and of detections in COCO's formats, checked for what scoring needs."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from detrx.errors import InvalidInputError

__all__ = ["check_results", "read_annotations", "read_ground_truth", "read_json", "read_results"]

logger = logging.getLogger(__name__)

_GROUND_TRUTH = {
    "images": ("id",),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
_RESULT = ("image_id", "category_id", "bbox", "score")


def read_json(path: str | os.PathLike, kind: str = "annotation file", open_file: Callable[..., Any] = open) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        kind: what messages call it.
        open_file: opens it, such as Detectron2's ``PathManager.open``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, or not valid JSON. The message begins with kind and path.
    """
    try:
        with open_file(os.fspath(path), "rb") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{kind} {path} does not exist") from error
    except IsADirectoryError as error:
        raise InvalidInputError(f"{kind} {path} is a folder") from error
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError
        raise InvalidInputError(f"{kind} {path}: not valid JSON ({error})") from error


def read_annotations(
    path: str | os.PathLike, sections: Sequence[str], open_file: Callable[..., Any] = open
) -> dict[str, Any]:
    """The content of an annotation file that has these lists ("images", ...); their entries are not looked at.

    Raises:
        FileNotFoundError, ValueError: see `read_json`; or a list is missing.
    """
    content = read_json(path, open_file=open_file)
    if not isinstance(content, dict):
        expected = f"expected an object with {', '.join(sections)}"
        raise InvalidInputError(f"annotation file {path}: {expected}, got a {type(content).__name__}")
    for section in sections:
        if not isinstance(content.get(section), list):
            raise InvalidInputError(f"annotation file {path}: has no list {section!r}")
    return content


def read_ground_truth(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a COCO annotation file, without annotations of images that it does not list.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no COCO file, or one of its entries is faulty; the message names file and entry.
    """
    content = read_annotations(path, list(_GROUND_TRUTH))
    for section, keys in _GROUND_TRUTH.items():
        for position, entry in enumerate(content[section]):
            if missing := _missing(entry, keys):
                raise InvalidInputError(f"annotation file {path}: {section}[{position}] has no {missing!r}")
    images, categories = _ids(content["images"]), _ids(content["categories"])
    problem = _first_problem(content["annotations"], lambda entry: _problem_of_box(entry, categories))
    if problem:
        raise InvalidInputError(f"annotation file {path}: annotations[{problem[0]}] {problem[1]}")
    if len(_ids(content["annotations"])) < len(content["annotations"]):
        raise InvalidInputError(f"annotation file {path}: the ids of its annotations are not unique")
    known = [entry for entry in content["annotations"] if _is_in(entry["image_id"], images)]
    if stray := len(content["annotations"]) - len(known):
        logger.warning("annotation file %s: %d annotations are of images that it does not list", path, stray)
    return {**content, "annotations": known}


def read_results(path: str | os.PathLike, ground_truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Detections in COCO's result format.

    Args:
        path: file with a list of ``{"image_id", "category_id", "bbox": [x, y, w, h], "score"}``, boxes in pixels, such
            as the ``coco_instances_results.json`` of an evaluation.
        ground_truth: the content of the annotation file that they are for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such list, or an entry is faulty; the message names file and entry.
    """
    content = read_json(path, "results file")
    if not isinstance(content, list):
        raise InvalidInputError(
            f"results file {path}: expected a list of detections with {', '.join(_RESULT)}, "
            f"got {'an object' if isinstance(content, dict) else type(content).__name__}"
        )
    check_results(content, ground_truth, f"results file {path}")
    return content


def check_results(
    results: Sequence[Mapping[str, Any]], ground_truth: Mapping[str, Any], source: str = "results"
) -> None:
    """Raise ``ValueError``, which names `source` and the entry, if a detection is malformed or of an unknown image or
    category."""
    images, categories = _ids(ground_truth["images"]), _ids(ground_truth["categories"])

    def problem_of(entry: Any) -> str | None:
        if missing := _missing(entry, _RESULT):
            return f"has no {missing!r}"
        if not _is_finite(entry["score"]):
            return f"has score {entry['score']!r}, expected a finite number"
        if not _is_in(entry["image_id"], images):
            return f"has image_id {entry['image_id']!r}, which is not in the 'images' of the annotations"
        return _problem_of_box(entry, categories)

    problem = _first_problem(results, problem_of)
    if problem:
        raise InvalidInputError(f"{source}: entry {problem[0]} {problem[1]}")


def _ids(entries: Iterable[Mapping[str, Any]]) -> set:
    return {entry["id"] for entry in entries}


def _missing(entry: Any, keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if not isinstance(entry, Mapping) or key not in entry), None)


def _problem_of_box(entry: Mapping[str, Any], categories: set) -> str | None:
    """What is wrong with the category or box of an annotation or detection."""
    where = f"(image {entry['image_id']})"
    if not _is_in(entry["category_id"], categories):
        known = sorted(categories)
        shown = ", ".join(map(str, known[:10])) + (", ..." if len(known) > 10 else "")
        return f"{where} has category_id {entry['category_id']!r}, the categories of the annotations are {shown}"
    box = entry["bbox"]
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(map(_is_finite, box)):
        return f"{where} has bbox {box!r}, expected four finite numbers [x, y, width, height]"
    if box[2] < 0 or box[3] < 0:
        return f"{where} has bbox {box!r}, expected [x, y, width, height] with a width and height of 0 or more"
    return None


def _is_in(value: Any, ids: set) -> bool:
    try:
        return value in ids
    except TypeError:  # a list or an object
        return False


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _first_problem(
    entries: Sequence[Mapping[str, Any]], problem_of: Callable[[Any], str | None]
) -> tuple[int, str] | None:
    """Position of the first faulty entry, and what is wrong with it."""
    found = ((position, problem_of(entry)) for position, entry in enumerate(entries))
    return next(((position, problem) for position, problem in found if problem), None)
