"""Statistics of detections: COCO metrics, confusion matrix, and counts by image and class."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
import torch
from tqdm import tqdm

from detrx.analysis.visualize import Box, compare_with_truth
from detrx.coco.values import area_of
from detrx.evaluation import BoxScores, coco_api, confusion_matrix, score_boxes
from detrx.evaluation.breakdown import SIZES
from detrx.evaluation.greedy import match_greedily

from .detections import Detections

LEAST_SCORE = 0.05
"""Detections with lower scores are left out of histograms: every query outputs some."""


@dataclass(frozen=True)
class ImageCount:
    """Objects of an image, and its detections with at least the score threshold."""

    image_id: Any
    correct: int
    wrong: int
    missed: int


@dataclass(frozen=True)
class DetectionStatistics:
    """
    Attributes:
        detections: those that the figures are of.
        names: of the K classes.
        scores: the COCO metrics of all images.
        confusion: see `detrx.evaluation.confusion_matrix`, (K + 1, K + 1).
        sizes: for each size "range" (in words), "objects", "AP" and "AR", in percent.
        images: of each image, in the order of the dataset.
        objects: number of all objects.
        classes: for each class the numbers of its objects, and of correct and of wrong detections.
        matches: scores of all detections, and whether they are correct, (D,) each; see `match_detections`.
    """

    detections: Detections

    names: list[str]
    scores: BoxScores
    confusion: np.ndarray
    sizes: dict[str, dict[str, Any]]
    images: list[ImageCount]
    objects: int
    classes: np.ndarray
    matches: tuple[np.ndarray, np.ndarray]


def compute_statistics(found: Detections, score_threshold: float) -> DetectionStatistics:
    """Compute all statistics; the confusion matrix and the counts by image and class leave out scores below
    `score_threshold`."""
    truth = found.dataset.ground_truth
    steps = tqdm(total=3, desc=f"scoring {len(found.results)} detections", unit="step", leave=False)
    scores = score_boxes(coco_api(truth), found.results, found.dataset.max_dets_per_image)
    steps.update()
    precisions, recalls = scores.average_precision(), scores.average_recall()
    areas = [area_of(each) for each in truth["annotations"] if not each.get("iscrowd", 0)]
    sizes = {
        name: {
            "range": _range(low, high),
            "objects": sum(low <= area <= high for area in areas),
            "AP": precisions[f"AP{name[0]}"],
            "AR": recalls[f"AR{name[0]}"],
        }
        for name, (low, high) in SIZES.items()
    }
    confusion = confusion_matrix(truth, found.results, 0.5, score_threshold)
    steps.update()
    index = {category_id: k for k, category_id in enumerate(found.dataset.category_ids)}
    classes = np.zeros((len(index), 3), dtype=np.int64)
    classes[:, 0] = confusion[:-1].sum(1)
    images, matches = [], []
    for image_id, image in match_detections(found, min(LEAST_SCORE, score_threshold)).items():
        counted = [match for match in image.detections if match.score >= score_threshold]
        for match in counted:
            classes[index[match.category_id], 1 if match.correct else 2] += 1
        correct = sum(match.correct for match in counted)
        images.append(ImageCount(image_id, correct, len(counted) - correct, image.objects - correct))
        matches += image.detections
    steps.close()
    columns = np.array([match.score for match in matches]), np.array([match.correct for match in matches], dtype=bool)
    names = found.dataset.class_names
    return DetectionStatistics(found, names, scores, confusion, sizes, images, len(areas), classes, columns)


class Match(NamedTuple):
    """A detection, and whether it is correct."""

    score: float
    correct: bool
    category_id: Any


class ImageMatches(NamedTuple):
    """The number of objects in an image, and its detections by falling score."""

    objects: int
    detections: list[Match]


def match_detections(found: Detections, least_score: float = LEAST_SCORE) -> dict[Any, ImageMatches]:
    """Match detections to objects of their class with an IoU of 0.5 or more, by image id. Detections with lower scores
    than `least_score`, and those in crowds of their class, are left out."""
    truth, results = _by_image(found.dataset.ground_truth["annotations"]), _by_image(found.results)
    matches = {}
    for image_id in found.dataset.records:
        objects = [each for each in truth[image_id] if not each.get("iscrowd", 0)]
        crowds = [each for each in truth[image_id] if each.get("iscrowd", 0)]
        detections = [each for each in results[image_id] if each["score"] >= least_score]
        detections = sorted(detections, key=lambda each: -each["score"])
        overlaps = _overlaps(detections, objects)
        correct = (match_greedily(np.where(overlaps >= 0.5, overlaps, -1.0)) >= 0).tolist()
        in_crowd = np.any(_overlaps(detections, crowds) >= 0.5, axis=1)
        kept = [
            Match(each["score"], right, each["category_id"])
            for each, right, ignored in zip(detections, correct, in_crowd.tolist(), strict=True)
            if right or not ignored
        ]
        matches[image_id] = ImageMatches(len(objects), kept)
    return matches


def _overlaps(detections: list[dict], objects: list[dict]) -> np.ndarray:
    """IoU of all pairs (D, G), 0 for different classes; for crowds, the part of the detection that lies inside."""
    if not detections or not objects:
        return np.zeros((len(detections), len(objects)))
    boxes, others = (np.array([each["bbox"] for each in some], dtype=float) for some in (detections, objects))
    overlaps = np.asarray(mask_util.iou(boxes, others, [int(each.get("iscrowd", 0)) for each in objects]))
    same_class = [[one["category_id"] == other["category_id"] for other in objects] for one in detections]
    return np.where(same_class, overlaps, 0.0)


def boxes_to_draw(found: Detections, image_id: Any, score_threshold: float) -> list[Box]:
    """Ground truth and detections of an image, as `compare_with_truth` draws them."""
    objects = [
        each
        for each in found.dataset.ground_truth["annotations"]
        if each["image_id"] == image_id and not each.get("iscrowd", 0)
    ]
    detections = [each for each in found.results if each["image_id"] == image_id and each["score"] >= score_threshold]
    index = {category_id: position for position, category_id in enumerate(found.dataset.category_ids)}
    return compare_with_truth(
        _corners(objects),
        torch.tensor([index[each["category_id"]] for each in objects], dtype=torch.long),
        _corners(detections),
        torch.tensor([index[each["category_id"]] for each in detections], dtype=torch.long),
        torch.tensor([each["score"] for each in detections], dtype=torch.float64),
        found.dataset.class_names,
    )


def _corners(entries: list[dict]) -> torch.Tensor:
    boxes = torch.tensor([each["bbox"] for each in entries], dtype=torch.float32).reshape(-1, 4)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)


def _by_image(entries: list[dict]) -> dict[Any, list[dict]]:
    grouped = defaultdict(list)
    for each in entries:
        grouped[each["image_id"]].append(each)
    return grouped


def _range(low: float, high: float) -> str:
    if not low:
        return f"up to {math.sqrt(high):.0f}² pixels"
    if high >= max(high for _, high in SIZES.values()):
        return f"{math.sqrt(low):.0f}² pixels or more"
    return f"{math.sqrt(low):.0f}² to {math.sqrt(high):.0f}² pixels"
