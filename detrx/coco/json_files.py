"""JSON files of annotations and of detections in COCO's formats, checked for what scoring needs."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detrx.errors import InvalidInputError

from .problems import printable
from .values import id_order, is_box, is_finite, is_id

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
        raise InvalidInputError(f"annotation file {path}: {expected}, got {type(content).__name__}")
    for section in sections:
        if not isinstance(content.get(section), list):
            raise InvalidInputError(f"annotation file {path}: has no list {section!r}")
    return content


def read_ground_truth(
    path: str | os.PathLike, open_file: Callable[..., Any] = open, labelled: bool = True
) -> dict[str, Any]:
    """The content of a COCO annotation file, without annotations of images that it does not list.

    Args:
        path: the file.
        open_file: see `read_json`.
        labelled: the file must have annotations; otherwise it may be that of a test set, which has no such list.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no COCO file, or one of its entries is faulty; the message names file and entry.
    """
    needed = [section for section in _GROUND_TRUTH if labelled or section != "annotations"]
    content = read_annotations(path, needed, open_file)
    source = f"annotation file {path}: "
    images, categories = (_unique_ids(content[section], section, source) for section in ("images", "categories"))
    if "annotations" not in content:
        return content
    if not isinstance(content["annotations"], list):
        raise InvalidInputError(f"{source}has no list 'annotations'")
    _unique_ids(content["annotations"], "annotations", source)
    problem = _first_problem(content["annotations"], lambda entry: _problem_of_annotation(entry, categories))
    if problem:
        raise InvalidInputError(f"{source}annotations[{problem[0]}] {problem[1]}")
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
    images, categories = ({entry["id"] for entry in ground_truth[key]} for key in ("images", "categories"))

    def problem_of(entry: Any) -> str | None:
        if missing := _missing(entry, _RESULT):
            return f"has no {missing!r}"
        if not is_finite(entry["score"]):
            return f"has score {printable(entry['score'])}, expected a finite number"
        if not _is_in(entry["image_id"], images):
            shown = printable(entry["image_id"])
            return f"has image_id {shown}, which is not in the 'images' of the annotations"
        problem = _problem_of_box(entry, categories)
        if problem is None and (entry["bbox"][2] < 0 or entry["bbox"][3] < 0):
            expected = "[x, y, width, height] with a width and height of 0 or more"
            problem = f"has bbox {printable(entry['bbox'])}, expected {expected}"
        return problem and f"(image {printable(entry['image_id'])}) {problem}"

    problem = _first_problem(results, problem_of)
    if problem:
        raise InvalidInputError(f"{source}: entry {problem[0]} {problem[1]}")


def _unique_ids(entries: Sequence[Any], section: str, source: str) -> set:
    """The ids of a section, whose entries have all keys."""
    keys, ids = _GROUND_TRUTH[section], set()
    for position, entry in enumerate(entries):
        if missing := _missing(entry, keys):
            raise InvalidInputError(f"{source}{section}[{position}] has no {missing!r}")
        if not is_id(entry["id"]):
            shown = f"{section}[{position}] has id {printable(entry['id'])}"
            raise InvalidInputError(f"{source}{shown}, expected a whole number or text")
        if entry["id"] in ids:
            raise InvalidInputError(
                f"{source}the ids of its {section} are not unique: {printable(entry['id'])} occurs twice"
            )
        ids.add(entry["id"])
    return ids


def _missing(entry: Any, keys: tuple[str, ...]) -> str | None:
    if isinstance(entry, Mapping):
        for key in keys:
            if key not in entry:
                return key
        return None
    return keys[0]


def _problem_of_annotation(entry: Mapping[str, Any], categories: set) -> str | None:
    problem = _problem_of_box(entry, categories)
    if problem is None and entry.get("iscrowd") not in (0, 1, None):
        problem = f"has iscrowd {printable(entry['iscrowd'])}, expected 0 or 1"
    if problem is None and entry.get("area") is not None and not is_finite(entry["area"]):
        problem = f"has area {printable(entry['area'])}, expected a finite number"
    return problem and f"(image {printable(entry['image_id'])}) {problem}"


def _problem_of_box(entry: Mapping[str, Any], categories: set) -> str | None:
    """What is wrong with the category or box of an annotation or detection."""
    if not _is_in(entry["category_id"], categories):
        known = sorted(categories, key=id_order)
        listed = ", ".join(map(printable, known[:10])) + (", ..." if len(known) > 10 else "")
        return f"has category_id {printable(entry['category_id'])}, the categories of the annotations are {listed}"
    if not is_box(entry["bbox"]):
        return f"has bbox {printable(entry['bbox'])}, expected four finite numbers [x, y, width, height]"
    return None


def _is_in(value: Any, ids: set) -> bool:
    try:
        return value in ids and not isinstance(value, bool)
    except TypeError:  # a list or an object
        return False


def _first_problem(
    entries: Sequence[Mapping[str, Any]], problem_of: Callable[[Any], str | None]
) -> tuple[int, str] | None:
    """Position of the first faulty entry, and what is wrong with it."""
    found = ((position, problem_of(entry)) for position, entry in enumerate(entries))
    return next(((position, problem) for position, problem in found if problem), None)
