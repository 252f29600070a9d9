"""Scoring detections: the COCO and LVIS metrics, and where the errors are."""

from typing import TYPE_CHECKING, Any

from detrx.coco.metrics import BoxScores, coco_api, score_boxes
from detrx.coco.results import check_results, read_ground_truth, read_results

from .breakdown import PrecisionRecall, class_names, confusion_matrix, precision_recall, scores_by_size
from .saved import evaluate_file

if TYPE_CHECKING:
    from .lvis import LVISEvaluator

__all__ = [
    "BoxScores",
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


def __getattr__(name: str) -> Any:
    if name == "LVISEvaluator":  # needs detrx.d2, whose evaluators need this package
        from .lvis import LVISEvaluator

        return LVISEvaluator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
