"""Where a detector's errors are: confusions between classes, precision over recall, average precision by size.

Everything here takes the content of a COCO annotation file and a list of detections in COCO's result format
(``{"image_id", "category_id", "bbox": [x, y, w, h], "score"}``, original ids, pixels). Classes are in the order
of their category ids.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from detrx.coco.json_files import check_results
from detrx.coco.metrics import BoxScores, coco_api, distinct_names, score_boxes
from detrx.coco.values import area_of, id_order
from detrx.errors import InvalidInputError

from .greedy import match_greedily

__all__ = ["PrecisionRecall", "class_names", "confusion_matrix", "precision_recall", "scores_by_size"]

SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e5**2)}
"""Name -> smallest and largest area in square pixels, as COCO has them."""


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision over recall of every class.

    Attributes:
        names: of the K classes.
        recall: (101,), from 0 to 1.
        precision: (K, 101), the best precision at this recall or more; NaN for classes without ground truth, 0 at
            recalls that are not reached.
        score: (K, 101), the score of the detection that reaches the recall; NaN without ground truth, 0 where it is
            not reached.
        average_precision: (K,), mean of the precisions, in percent.
    """

    names: list[str]
    recall: np.ndarray
    precision: np.ndarray
    score: np.ndarray
    average_precision: np.ndarray


def class_names(ground_truth: Mapping[str, Any]) -> list[str]:
    """Names of the categories, by rising id: what the rows of all figures here stand for. All are different: where
    categories have the same name, their ids are in it."""
    names = {entry["id"]: entry["name"] for entry in ground_truth["categories"]}
    ids = sorted(names, key=id_order)
    return distinct_names([names[category] for category in ids], ids)


def confusion_matrix(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    iou_threshold: float = 0.5,
    score_threshold: float = 0.3,
) -> np.ndarray:
    """Count which class the detections give to the objects of each class.

    In every image, detections take objects by falling score. Each takes, of the objects that are left and overlap it
    enough, the one of its own class with the highest IoU; if there is none, that of another class. Detections that
    take none are false ones, unless they lie in a crowd of their class by the threshold; these do not count.

    Args:
        ground_truth: content of a COCO annotation file.
        results: detections.
        iou_threshold: smallest IoU of a detection and its object.
        score_threshold: detections with lower scores do not count.

    Returns:
        (K + 1, K + 1) counts: row = class of the object, column = class of the detection. The last row is background:
        detections without object; the last column: objects without detection. The sum of a row k < K is the number of
        objects of the class, crowds apart.

    Raises:
        ValueError: a faulty detection, see `check_results`.
    """
    check_results(results, ground_truth)
    ids = sorted({entry["id"] for entry in ground_truth["categories"]}, key=id_order)
    index = {category: k for k, category in enumerate(ids)}
    objects: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    crowds: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    found: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in _annotations(ground_truth):
        (crowds if entry.get("iscrowd", 0) else objects)[entry["image_id"]].append(entry)
    for entry in results:
        if entry["score"] >= score_threshold:
            found[entry["image_id"]].append(entry)

    background = len(index)
    matrix = np.zeros((background + 1, background + 1), dtype=np.int64)
    for image in objects.keys() | found.keys():
        detections = sorted(found[image], key=lambda entry: -entry["score"])
        classes = np.array([index[entry["category_id"]] for entry in detections], dtype=int)
        true_classes = np.array([index[entry["category_id"]] for entry in objects[image]], dtype=int)
        crowd_classes = np.array([index[entry["category_id"]] for entry in crowds[image]], dtype=int)
        overlaps = _overlaps(detections, objects[image], False)
        own_class = classes[:, None] == true_classes  # comes first: IoU is at most 1
        taken = match_greedily(np.where(overlaps >= iou_threshold, overlaps + 2 * own_class, -1.0))
        in_crowd = _overlaps(detections, crowds[image], True) >= iou_threshold
        in_crowd = (in_crowd & (classes[:, None] == crowd_classes)).any(1)
        counts = (taken >= 0) | ~in_crowd
        rows = np.where(taken >= 0, np.append(true_classes, background)[taken], background)  # -1: the last
        np.add.at(matrix, (rows[counts], classes[counts]), 1)
        missed = np.delete(true_classes, taken[taken >= 0])
        np.add.at(matrix[:, background], missed, 1)
    return matrix


def precision_recall(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    iou_threshold: float = 0.5,
    max_dets_per_image: int = 100,
) -> PrecisionRecall:
    """Precision over recall of every class, as it goes into the COCO metrics.

    Args:
        ground_truth: content of a COCO annotation file.
        results: detections.
        iou_threshold: 0.5, 0.55, ... 0.95.
        max_dets_per_image: how many of an image's detections of each class count, by score.

    Raises:
        ValueError: another threshold, or a faulty detection.
    """
    scores = _score(ground_truth, results, max_dets_per_image)
    threshold = np.flatnonzero(np.isclose(scores.iou_thresholds, iou_threshold))
    if not threshold.size:
        raise InvalidInputError(f"iou_threshold must be one of 0.5, 0.55, ... 0.95, got {iou_threshold}")
    precision = scores.precision[threshold[0], :, :, 0, -1].T
    reached_by = scores.scores[threshold[0], :, :, 0, -1].T
    exists = precision > -1
    precision = np.where(exists, precision, np.nan)
    return PrecisionRecall(
        class_names(ground_truth),
        scores.recall_thresholds,
        precision,
        np.where(exists, reached_by, np.nan),
        100 * precision.mean(1),
    )


def scores_by_size(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], max_dets_per_image: int = 100
) -> dict[str, dict[str, float]]:
    """AP and AR in percent (NaN without objects) and the number of objects, for small, medium and large ones.

    Returns:
        ``{"small": {"AP", "AR", "objects"}, "medium": ..., "large": ...}``; crowds are no objects. The ranges are
        those of COCO (`SIZES`), whose ends belong to both sides. `max_dets_per_image` as for `precision_recall`.

    Raises:
        ValueError: a faulty detection.
    """
    scores = _score(ground_truth, results, max_dets_per_image)
    precisions, recalls = scores.average_precision(), scores.average_recall()
    objects = [entry for entry in _annotations(ground_truth) if not entry.get("iscrowd", 0)]
    areas = [area_of(entry) for entry in objects]
    return {
        size: {
            "AP": precisions[f"AP{size[0]}"],
            "AR": recalls[f"AR{size[0]}"],
            "objects": sum(smallest <= area <= largest for area in areas),
        }
        for size, (smallest, largest) in SIZES.items()
    }


def _annotations(ground_truth: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those of the images that are listed."""
    images = {image["id"] for image in ground_truth["images"]}
    return [entry for entry in ground_truth["annotations"] if entry["image_id"] in images]


def _score(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], max_dets_per_image: int) -> BoxScores:
    check_results(results, ground_truth)
    return score_boxes(coco_api(ground_truth), results, max_dets_per_image)


def _overlaps(detections: list[Mapping], objects: list[Mapping], crowd: bool) -> np.ndarray:
    """IoU of all pairs (D, G); with crowds, the fraction of the detection that lies inside."""
    if not detections or not objects:
        return np.zeros((len(detections), len(objects)))
    boxes = [np.array([entry["bbox"] for entry in entries], dtype=float) for entries in (detections, objects)]
    return mask_util.iou(*boxes, [int(crowd)] * len(objects))
