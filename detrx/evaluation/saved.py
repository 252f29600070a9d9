"""Scoring a file of detections, without the model that made them."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from detrx.coco.json_files import read_ground_truth, read_results
from detrx.coco.metrics import coco_api, distinct_names, score_boxes, table, table_per_class
from detrx.errors import InvalidInputError

__all__ = ["evaluate_file", "is_lvis", "tables", "without_duplicates"]


def is_lvis(ground_truth: Mapping[str, Any]) -> bool:
    """Whether annotations are federated: images tell which classes were looked for, classes how frequent they are."""
    images, categories = ground_truth["images"], ground_truth["categories"]
    return bool(images and categories) and all(
        key in entry for entries, key in ((images, "neg_category_ids"), (categories, "frequency")) for entry in entries
    )


def evaluate_file(
    results: str | os.PathLike,
    annotations: str | os.PathLike,
    max_dets_per_image: int | None = None,
    use_fast_impl: bool = True,
    nms: float | None = None,
) -> dict[str, Any]:
    """Score a file of detections in COCO's result format by the LVIS metrics if `is_lvis`, by those of COCO otherwise.

    Args:
        results: the ``*_instances_results.json`` of an evaluation.
        annotations: the annotation file that they are for.
        max_dets_per_image: how many of an image's detections count, by score. Default: 100 of each class; LVIS: 300.
        use_fast_impl: as for `score_boxes`.
        nms: remove duplicates first, see `without_duplicates`. None: keep all.

    Returns:
        ``{"metric": "COCO" or "LVIS", "images", "objects", "detections", "AP": {}, "AR": {}, "per_class": []}``, in
        percent, NaN where there is no ground truth. "per_class" has name, category id, number of objects (crowds apart)
        and APs of each class; None for LVIS.

    Raises:
        FileNotFoundError, ValueError: see `read_ground_truth` and `read_results`.
        ImportError: LVIS without the package lvis.
    """
    ground_truth = read_ground_truth(annotations)
    detections: Sequence[Mapping[str, Any]] = read_results(results, ground_truth)
    if nms is not None:
        detections = without_duplicates(detections, nms)
    lvis = is_lvis(ground_truth)
    score = _score_lvis if lvis else _score_coco
    return {
        "metric": "LVIS" if lvis else "COCO",
        "images": len(ground_truth["images"]),
        "objects": sum(not entry.get("iscrowd", 0) for entry in ground_truth["annotations"]),
        "detections": len(detections),
        **score(ground_truth, detections, max_dets_per_image, use_fast_impl),
    }


def without_duplicates(detections: Sequence[Mapping[str, Any]], iou: float) -> list[Mapping[str, Any]]:
    """The detections that non-maximum suppression leaves, per image and class: what a detector would give if it had
    learned to leave out duplicates.

    Args:
        iou: a detection with a larger overlap with a better one is left out.

    Raises:
        ValueError: `iou` is not in [0, 1].
    """
    if not 0 <= iou <= 1:
        raise InvalidInputError(f"the IoU of non-maximum suppression must be in [0, 1], got {iou}")
    from torchvision.ops import nms

    groups: dict[tuple[Any, Any], list[int]] = defaultdict(list)
    for position, entry in enumerate(detections):
        groups[entry["image_id"], entry["category_id"]].append(position)
    boxes = torch.tensor([entry["bbox"] for entry in detections], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = torch.tensor([entry["score"] for entry in detections], dtype=torch.float64)
    kept: list[int] = []
    for positions in groups.values():  # one by one: the time of batched_nms grows with the square of their number
        if len(positions) == 1:
            kept += positions
            continue
        members = torch.tensor(positions)
        kept += members[nms(boxes[members], scores[members], iou)].tolist()
    return [detections[position] for position in sorted(kept)]


def _score_coco(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], limit: int | None, use_fast_impl: bool
) -> dict[str, Any]:
    limit = 100 if limit is None else limit
    scores = score_boxes(coco_api(ground_truth), detections, limit, use_fast_impl=use_fast_impl)
    objects: dict[Any, int] = {}
    for entry in ground_truth["annotations"]:
        if not entry.get("iscrowd", 0):
            objects[entry["category_id"]] = objects.get(entry["category_id"], 0) + 1
    names = {entry["id"]: entry["name"] for entry in ground_truth["categories"]}
    per_class = [
        {"name": names[category], "category_id": category, "objects": objects.get(category, 0), **figures}
        for category, figures in zip(scores.category_ids, scores.per_class(), strict=True)
    ]
    return {"AP": scores.average_precision(), "AR": scores.average_recall(), "per_class": per_class}


def _score_lvis(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], limit: int | None, _: bool
) -> dict[str, Any]:
    from .lvis import import_lvis

    import_lvis()
    from .lvis_scores import score_lvis

    scores = score_lvis(ground_truth, detections, 300 if limit is None else limit)
    recalls = {name: scores.pop(name) for name in list(scores) if name.startswith("AR")}
    return {"AP": scores, "AR": recalls, "per_class": None}


def tables(report: Mapping[str, Any], per_class: bool = False) -> str:
    """What `evaluate_file` gives, as the tables that Detectron2 prints; with ``per_class``, that of the classes too."""
    head = "{metric} metrics: {images} images, {objects} objects, {detections} detections".format(**report)
    parts = [head, table(report["AP"]), table(report["AR"])]
    if per_class and report["per_class"]:
        classes = report["per_class"]
        names = distinct_names([each["name"] for each in classes], [each["category_id"] for each in classes])
        parts.append(table_per_class([(name, each["AP"]) for name, each in zip(names, classes, strict=True)]))
    return "\n\n".join(parts)
