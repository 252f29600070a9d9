"""What is wrong with dataset dicts, whichever function made them, apart from their boxes."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable
from typing import Any

from detrx.coco.annotations import LARGEST_SIDE
from detrx.coco.problems import Findings, Problem, printable
from detrx.d2.structures import BoxMode

__all__ = ["check_labels", "usable_records"]


def usable_records(records: Iterable[Any], findings: Findings) -> list[dict[str, Any]]:
    """Dataset dicts that are as Detectron2 defines them; others are found."""
    usable = []
    for position, record in enumerate(records):
        problem = _problem_of(record)
        if problem is not None:
            findings.add(Problem.ENTRY, f"dataset dict {position} {problem}")
            continue
        annotations = []
        for annotation in record.get("annotations", []):
            problem = _problem_of_annotation(annotation)
            if problem is None:
                annotations.append(annotation)
            else:
                name = printable(os.fspath(record["file_name"]))
                findings.add(Problem.ENTRY, f"dataset dict {position} ({name}) has an annotation that {problem}")
        usable.append({**record, "file_name": os.fspath(record["file_name"]), "annotations": annotations})
    return usable


def _problem_of(record: Any) -> str | None:
    if not isinstance(record, dict) or not isinstance(record.get("file_name"), (str, os.PathLike)):
        return f"has no file_name: {printable(record)}"
    if not isinstance(record.get("annotations", []), (list, tuple)):
        return f"has annotations {printable(record['annotations'])}, expected a list"
    for side in ("width", "height"):
        if side in record and not (isinstance(record[side], numbers.Real) and 0 < record[side] <= LARGEST_SIDE):
            return f"has {side} {printable(record[side])}, expected a positive number"
    return None


def _problem_of_annotation(annotation: Any) -> str | None:
    if not isinstance(annotation, dict):
        return f"is no dict: {printable(annotation)}"
    if missing := [key for key in ("bbox", "bbox_mode", "category_id") if key not in annotation]:
        return f"has no {missing[0]}"
    category_id = annotation["category_id"]
    if not (isinstance(category_id, numbers.Integral) and 0 <= int(category_id) < 2**31):
        return f"has category_id {printable(category_id)}, expected 0, 1, ..."
    if annotation["bbox_mode"] not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        return f"has bbox_mode {printable(annotation['bbox_mode'])}, expected XYXY_ABS or XYWH_ABS"
    return None


def check_labels(records: list[dict[str, Any]], classes: list[str], findings: Findings) -> None:
    """Find annotations of other classes than these, if any are known, and remove them, in place."""
    for record in records if classes else ():
        for annotation in record["annotations"]:
            if annotation["category_id"] not in range(len(classes)):
                what = f"image {printable(record['file_name'])} has category_id {printable(annotation['category_id'])}"
                findings.add(Problem.UNKNOWN_CATEGORY, f"{what}, expected 0 to {len(classes) - 1}")
        record["annotations"] = [a for a in record["annotations"] if a["category_id"] in range(len(classes))]
