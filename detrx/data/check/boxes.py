"""What is wrong with the boxes of dataset dicts, whichever kind of dataset they come from."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from detrx.coco.problems import Findings, Problem, printable
from detrx.coco.values import is_box
from detrx.d2.structures import BoxMode

__all__ = ["MIN_BOX_SIZE", "BoxTable", "check_boxes", "check_boxes_closely"]

MIN_BOX_SIZE = 1e-5  # pixels; a box with a side of no more is left out of training
_TOLERANCE = 1.0  # pixels; annotations of COCO exceed the image by fractions of one
_MANY = 0.1  # fraction of boxes beyond the image, above which their format is doubted


@dataclasses.dataclass
class BoxTable:
    """The N usable annotations of a dataset, flat.

    Attributes:
        boxes: (N, 4) float64, XYWH in pixels.
        sizes: (N, 2) float64, width and height of each one's image; nan where that is not annotated.
        classes: (N,) int64, `category_id` of each.
        crowd: (N,) bool.
        record: (N,) int64, index of its dataset dict.
        entry: (N,) int64, its index among the annotations of that dict.
    """

    boxes: np.ndarray
    sizes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    record: np.ndarray
    entry: np.ndarray

    def left_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Which boxes `DetectionMapper` leaves out, apart from crowds: (N,) bool for those without width or height, and
        for others that have none inside of the image. In float32, as it has them."""
        low, sides = (part.astype(np.float32) for part in (self.boxes[:, :2], self.boxes[:, 2:]))
        high = low + sides
        empty = np.any(high - low <= MIN_BOX_SIZE, axis=1)
        limits = np.where(np.isnan(self.sizes), np.inf, self.sizes).astype(np.float32)
        inside = np.clip(high, 0, limits) - np.clip(low, 0, limits)
        return empty, ~empty & np.any(inside <= MIN_BOX_SIZE, axis=1)

    def why_nothing_to_learn(self) -> str | None:
        """If no box is left for training, the reasons in words."""
        empty, outside = self.left_out()
        left_out = self.crowd | empty | outside
        if not left_out.all():
            return None
        if not len(self.boxes):
            return "there are no annotations"
        reasons = {
            "crowds (iscrowd 1)": self.crowd,
            "without width or height": empty & ~self.crowd,
            "outside of the image": outside & ~self.crowd,
        }
        counts = ", ".join(f"{mask.sum()} {reason}" for reason, mask in reasons.items() if mask.any())
        return f"training leaves out all {len(self.boxes)} boxes: {counts}"

    def describe(self, records: list[dict[str, Any]], i: int) -> str:
        """Box i for a message: annotation id if known, image and coordinates."""
        record = records[self.record[i]]
        annotation = record["annotations"][self.entry[i]]
        which = f"annotation {annotation['id']}" if "id" in annotation else f"box {self.entry[i]}"
        width, height = self.sizes[i]
        size = "" if np.isnan(width) else f" ({width:g} x {height:g})"
        box = ", ".join(f"{value:.10g}" for value in self.boxes[i])
        return f"{which} of image {printable(record['file_name'])}{size}, bbox [{box}]"


def check_boxes(records: list[dict[str, Any]], findings: Findings) -> BoxTable:
    """Find boxes that are no boxes, have no extent, or reach beyond their image.

    Args:
        records: dataset dicts, each with a `file_name`; `annotations`, `width` and `height` may be missing.
        findings: gets the problems.

    Returns:
        All annotations but those whose box is none.
    """
    table = _table(records, findings)
    x1, y1 = table.boxes[:, :2].T
    x2, y2 = (table.boxes[:, :2] + table.boxes[:, 2:]).T
    width, height = table.sizes.T  # comparisons with nan are false
    empty, outside = table.left_out()
    t = _TOLERANCE
    beyond = ~empty & ~outside & ((x1 < -t) | (y1 < -t) | (x2 > width + t) | (y2 > height + t))
    _add(findings, Problem.NO_EXTENT, empty & ~table.crowd, table, records)
    _add(findings, Problem.OUTSIDE, outside & ~table.crowd, table, records)
    _add(findings, Problem.PARTLY_OUTSIDE, beyond & ~table.crowd, table, records)
    return table


def check_boxes_closely(table: BoxTable, records: list[dict[str, Any]], findings: Findings) -> None:
    """Find what is suspicious about boxes, beyond `check_boxes`: tiny ones, equal ones, and other formats than XYWH."""
    boxes, real = table.boxes, ~table.crowd
    sides = boxes[:, 2:]
    _add(findings, Problem.TINY, real & ~table.left_out()[0] & (sides < 1).any(1), table, records)

    keys = np.column_stack([table.record, table.classes, boxes])
    _, first = np.unique(keys, axis=0, return_index=True)
    again = np.ones(len(boxes), dtype=bool)
    again[first] = False
    _add(findings, Problem.SAME_BOX, again & real, table, records)

    if len(boxes) and boxes.max() <= 1:
        findings.add(Problem.NORMALISED, table.describe(records, 0))
    ends = boxes[:, :2] + sides
    beyond = (ends > table.sizes + _TOLERANCE).any(1)
    as_corners = (sides > boxes[:, :2]).all(1) & (sides <= table.sizes + _TOLERANCE).all(1)
    if len(boxes) and beyond.mean() > _MANY and as_corners.all():
        findings.add(Problem.CORNERS, table.describe(records, int(beyond.argmax())))


def _table(records: list[dict[str, Any]], findings: Findings) -> BoxTable:
    where = [(r, a) for r, record in enumerate(records) for a in range(len(record.get("annotations", ())))]
    annotations = [annotation for record in records for annotation in record.get("annotations", ())]
    boxes = [annotation["bbox"] for annotation in annotations]
    # All at once, since large datasets have millions of boxes, and nearly always all of them are valid.
    if not (set(map(type, boxes)) <= {list, tuple} and set(map(len, boxes)) <= {4} and _all_finite(boxes)):
        usable = []
        for k, box in enumerate(boxes):
            if is_box(box.tolist() if isinstance(box, np.ndarray) else box):
                usable.append(k)
            else:
                name = printable(records[where[k][0]]["file_name"])
                findings.add(Problem.BAD_BOX, f"image {name} has bbox {printable(box)}, expected four finite numbers")
        where, annotations, boxes = ([values[k] for k in usable] for values in (where, annotations, boxes))

    xywh = BoxMode.XYWH_ABS
    modes = [annotation["bbox_mode"] for annotation in annotations]
    if set(modes) - {xywh}:
        boxes = [BoxMode.convert(list(box), mode, xywh) for box, mode in zip(boxes, modes, strict=True)]
    sizes = np.array([(r.get("width", np.nan), r.get("height", np.nan)) for r in records], dtype=np.float64)
    record, entry = np.array(where, dtype=np.int64).reshape(-1, 2).T
    return BoxTable(
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        sizes=sizes.reshape(-1, 2)[record],
        classes=np.array([annotation["category_id"] for annotation in annotations], dtype=np.int64),
        crowd=np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations], dtype=bool),
        record=record,
        entry=entry,
    )


def _all_finite(boxes: list[Any]) -> bool:
    if not set(map(type, itertools.chain.from_iterable(boxes))) <= {int, float}:
        return False
    try:
        return bool((np.abs(np.array(boxes, dtype=np.float64)) < 1e30).all())
    except OverflowError:  # integers beyond any float
        return False


def _add(
    findings: Findings, problem: Problem, mask: np.ndarray, table: BoxTable, records: list[dict[str, Any]]
) -> None:
    found = np.flatnonzero(mask)
    for i in found[: findings.max_examples]:
        findings.add(problem, table.describe(records, int(i)))
    if len(found) > findings.max_examples:
        findings.add(problem, "", count=len(found) - findings.max_examples)
