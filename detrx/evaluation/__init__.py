"""Scoring detections: the COCO and LVIS metrics, and where the errors are."""

from .breakdown import PrecisionRecall, class_names, confusion_matrix, precision_recall, scores_by_size
from .coco_scores import BoxScores, coco_api, score_boxes
from .results import check_results, read_ground_truth, read_results

__all__ = [
    "BoxScores",
    "PrecisionRecall",
    "check_results",
    "class_names",
    "coco_api",
    "confusion_matrix",
    "precision_recall",
    "read_ground_truth",
    "read_results",
    "score_boxes",
    "scores_by_size",
]
