"""Files of annotations and of detections in COCO's formats, checked."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from detrx.atomic import write_atomically
from detrx.errors import InvalidInputError

__all__ = [
    "check_results",
    "instances_on_host",
    "read_ground_truth",
    "read_results",
    "to_results",
    "with_category_ids",
    "write_results",
]

logger = logging.getLogger(__name__)

_GROUND_TRUTH = {
    "images": ("id",),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
_RESULT = ("image_id", "category_id", "bbox", "score")


def read_ground_truth(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a COCO annotation file, without annotations of images that it does not list.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no COCO file, or one of its entries is faulty; the message names file and entry.
    """
    content = _read_json(path, "annotation")
    if not isinstance(content, dict):
        raise InvalidInputError(f"annotation file {path}: expected an object with {', '.join(_GROUND_TRUTH)}")
    for section, keys in _GROUND_TRUTH.items():
        if not isinstance(content.get(section), list):
            raise InvalidInputError(f"annotation file {path} has no list {section!r}")
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
    content = _read_json(path, "results")
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


def instances_on_host(instances: Sequence[Any]) -> list[Any]:
    """`Instances` of several images on the host, in one copy for all of them: `Instances.to` makes one for each field
    of each image, and waits for a GPU every time."""
    from detrx.layers import to_host

    places, tensors = [], []
    for index, each in enumerate(instances):
        for name, value in each.get_fields().items():
            tensor = getattr(value, "tensor", value)  # of Boxes
            if hasattr(tensor, "device") and tensor.device.type != "cpu":
                places.append((index, name))
                tensors.append(tensor)
    if not tensors:
        return list(instances)
    fields = [dict(each.get_fields()) for each in instances]
    for (index, name), tensor in zip(places, to_host(tensors), strict=True):
        own = tensor.clone()  # not all of the batch is to live as long as one image's detections
        value = fields[index][name]
        fields[index][name] = type(value)(own) if hasattr(value, "tensor") else own
    return [type(each)(each.image_size, **own) for each, own in zip(instances, fields, strict=True)]


def to_results(instances: Any, image_id: int) -> list[dict[str, Any]]:
    """Detections in COCO's result format, of `Instances` on the CPU with ``pred_boxes``, ``scores`` and
    ``pred_classes``. Their category ids are still the model's class indices, see `with_category_ids`."""
    boxes = instances.pred_boxes.tensor.clone()
    boxes[:, 2:] -= boxes[:, :2]
    columns = zip(instances.pred_classes.tolist(), boxes.tolist(), instances.scores.tolist(), strict=True)
    return [{"image_id": image_id, "category_id": c, "bbox": box, "score": score} for c, box, score in columns]


def with_category_ids(results: Iterable[dict[str, Any]], id_map: Mapping[int, int] | None) -> list[dict[str, Any]]:
    """Detections whose category ids are class indices, with the original ids.

    Args:
        id_map: category id -> class index (``thing_dataset_id_to_contiguous_id``). None: ids are as they are.
    """
    if id_map is None:
        return list(results)
    ids = {index: category for category, index in id_map.items()}
    converted = []
    for result in results:
        index = result["category_id"]
        assert index in ids, (
            f"A prediction for image {result['image_id']} has class {index}, the dataset has {len(ids)}"
        )
        converted.append({**result, "category_id": ids[index]})
    return converted


def write_results(path: str | os.PathLike, results: list[dict[str, Any]]) -> None:
    """Write detections as JSON, replacing an earlier file at once; the folder is made."""
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    write_atomically(path, lambda file: file.write(json.dumps(results).encode()))
    logger.info("Wrote %d detections to %s", len(results), path)


def _read_json(path: str | os.PathLike, kind: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{kind} file {path} does not exist") from error
    except ValueError as error:  # also UnicodeDecodeError
        raise InvalidInputError(f"{kind} file {path} is not valid JSON: {error}") from error


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
