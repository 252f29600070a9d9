"""Scoring detections: the COCO and LVIS metrics, and where the errors are."""

from detrx.coco.json_files import check_results, read_ground_truth, read_results
from detrx.coco.metrics import BoxScores, coco_api, score_boxes

from .breakdown import PrecisionRecall, class_names, confusion_matrix, precision_recall, scores_by_size
from .coco import COCOEvaluator
from .lvis import LVISEvaluator
from .saved import evaluate_file

__all__ = [
    "BoxScores",
    "COCOEvaluator",
    "LVISEvaluator",
    "PrecisionRecall",
    "check_results",
    "class_names",
    "coco_api",
    "confusion_matrix",
    "evaluate_file",
    "precision_recall",
    "read_ground_truth",
    "read_results",
    "score_boxes",
    "scores_by_size",
]
