"""Scoring a file of detections, without the model that made them."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from detrx.coco.json_files import read_ground_truth, read_results
from detrx.coco.metrics import coco_api, distinct_names, score_boxes, table, table_per_class

from .nms import without_duplicates

__all__ = ["evaluate_file", "is_lvis", "tables"]


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
