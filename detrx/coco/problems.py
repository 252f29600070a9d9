"""What can be wrong with a dataset, and a collection of what is wrong with one: counts and examples of each kind."""

from __future__ import annotations

import enum
import functools
import logging
from typing import Any

from detrx.errors import InvalidInputError

__all__ = ["Findings", "Problem", "printable"]

logger = logging.getLogger(__name__)

ERROR, WARNING = "error", "warning"


class Problem(enum.Enum):
    """Kinds of problems. The value is the severity, and what the problem means.

    An error stops a training or an evaluation, or makes it meaningless. A warning does not: its text says how detrx
    handles the problem.
    """

    FILE = ERROR, "the annotation file cannot be read as COCO's format"
    ENTRY = ERROR, "entries of the annotation file without a key that is needed, or with a value of the wrong kind"
    CATEGORY_ID_TWICE = ERROR, "categories with the same id"
    IMAGE_ID_TWICE = ERROR, "images with the same id"
    ANNOTATION_ID_TWICE = ERROR, "annotations with the same id"
    UNKNOWN_CATEGORY = ERROR, "annotations of a category that is not listed"
    OTHER_CLASSES = ERROR, "the categories are not the classes that the dataset was registered with"
    CLASS_COUNT = ERROR, "the number of classes is not that of the model"
    TRAIN_TEST_CLASSES = ERROR, "the classes of training and test are not the same"
    BAD_BOX = ERROR, "boxes that are not four finite numbers"
    IGNORE = ERROR, "annotations with 'ignore', which Detectron2 and pycocotools do not support; use 'iscrowd'"
    NO_BOXES = ERROR, "there is no box to learn from"
    IMAGE_MISSING = ERROR, "image files that do not exist"
    IMAGE_UNREADABLE = ERROR, "image files that cannot be decoded"
    IMAGE_SIZE = ERROR, "image files of another size than annotated"

    STRAY_ANNOTATION = WARNING, "annotations of an image that is not listed: left out"
    ANNOTATION_ID_0 = WARNING, "an annotation with id 0: pycocotools by itself takes each detection of it for wrong"
    NO_AREA_KEY = WARNING, "annotations without 'area' or 'iscrowd': pycocotools by itself cannot evaluate on them"
    NO_POLYGON = WARNING, "annotations with a segmentation that cannot be used: their box is used without it"
    CATEGORY_NAME_TWICE = (
        WARNING,
        "categories with the same name: they stay different classes, and their figures have the ids in the name",
    )
    FILE_NAME_TWICE = WARNING, "image files that are listed more than once: they are used more often"
    IN_TRAIN_AND_TEST = WARNING, "image files that are in the training data and in the test data"
    NO_EXTENT = WARNING, "boxes without width or height: left out of training, counted in evaluation"
    OUTSIDE = WARNING, "boxes outside of the image: left out of training, counted in evaluation"
    PARTLY_OUTSIDE = WARNING, "boxes that reach more than one pixel beyond the image: clipped in training"
    TINY = WARNING, "boxes with a side of less than one pixel"
    SAME_BOX = WARNING, "boxes that occur more than once, with the same class"
    NORMALISED = WARNING, "no coordinate exceeds 1: are boxes given as fractions of the image? Pixels are expected"
    CORNERS = WARNING, "most boxes fit into the images only as [x1, y1, x2, y2], but [x, y, width, height] is expected"
    IMAGE_SHAPE = WARNING, "images more than 40 times as long as wide: resized for the model, little is left of them"
    MORE_THAN_QUERIES = WARNING, "images with more boxes than the model has queries: it cannot find all of them"
    IMAGE_NOT_TURNED = WARNING, "image files annotated with their unturned size: EXIF orientation is not applied"
    IMAGE_BAD_EXIF = WARNING, "image files with broken EXIF data: their orientation is not applied"
    IMAGE_TRANSPARENT = WARNING, "image files with transparent pixels: transparency is dropped, hidden colours appear"
    IMAGE_DIM = WARNING, "image files of 16 bits with small values only: nearly black, since 65535 is white"
    IMAGE_FRAMES = WARNING, "image files of several frames: the first is taken"

    def __init__(self, severity: str, text: str) -> None:
        self.severity, self.text = severity, text


class Findings:
    """Counts of problems, with the first few examples of each kind."""

    def __init__(self, max_examples: int = 3) -> None:
        self.max_examples = max_examples
        self._found: dict[Problem, tuple[int, list[str]]] = {}

    def add(self, problem: Problem, example: str, count: int = 1) -> None:
        """Count a problem `count` times. `example` is a sentence or part of one that names what is affected."""
        example = example.encode("utf-8", "backslashreplace").decode()  # JSON can hold half a character
        before, examples = self._found.get(problem, (0, []))
        if len(examples) < self.max_examples:
            examples.append(example)
        self._found[problem] = before + count, examples

    def count(self, severity: str) -> int:
        """Number of problems of this severity, "error" or "warning"."""
        return sum(count for problem, (count, _) in self._found.items() if problem.severity == severity)

    def entries(self) -> list[dict[str, Any]]:
        """Each kind found, errors first: `kind`, `severity`, `meaning`, `count`, `examples`."""
        order = list(Problem)
        return [
            {
                "kind": problem.name.lower().replace("_", "-"),
                "severity": problem.severity,
                "meaning": problem.text,
                "count": count,
                "examples": list(examples),
            }
            for problem, (count, examples) in sorted(self._found.items(), key=lambda item: order.index(item[0]))
        ]

    def raise_first_error(self, source: str) -> None:
        """Raise ``ValueError`` if there are errors: `source`, a file or a dataset, the first error, and how many others
        there are."""
        errors = [entry for entry in self.entries() if entry["severity"] == ERROR]
        if errors:
            more = sum(entry["count"] for entry in errors) - 1
            others = f" ({more} more: tools/check_dataset.py lists them)" if more else ""
            raise InvalidInputError(f"{source}: {errors[0]['examples'][0]}{others}")

    def log_warnings(self, source: str) -> None:
        """Log each kind of warning about `source`, a file or a dataset; the same one only once per process."""
        for entry in self.entries():
            if entry["severity"] == WARNING:
                _log_once(f"{source}: {entry['meaning']} ({entry['count']}), such as: {entry['examples'][0]}")


@functools.cache
def _log_once(message: str) -> None:
    logger.warning(message)


def printable(value: Any) -> str:
    """Text for a table or a message, however odd: without control characters, and never long. Text that could be taken
    for another value (a number, a list, null) or for nothing is quoted: "128" is not 128."""
    is_clear = isinstance(value, str) and value.isprintable() and not _looks_like_a_value(value)
    text = str(value) if is_clear else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _looks_like_a_value(text: str) -> bool:
    if not text or text != text.strip() or text[0] in "[{('\"" or text.lower() in ("none", "null", "true", "false"):
        return True
    if text[0] not in "0123456789+-.iInN":  # nothing else begins a number
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True
