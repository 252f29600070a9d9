"""Analysis of models and trainings: drawings of detections, training curves, costs."""

from .cost import evaluation_images, model_cost, random_image, random_model
from .curves import plot_runs
from .flops import count_flops
from .memory import inference_memory, training_memory
from .metrics import RunMetrics, read_metrics
from .visualize import Box, compare_with_truth, contact_sheet, draw_boxes

__all__ = [
    "Box",
    "RunMetrics",
    "compare_with_truth",
    "contact_sheet",
    "count_flops",
    "draw_boxes",
    "evaluation_images",
    "inference_memory",
    "model_cost",
    "plot_runs",
    "random_image",
    "random_model",
    "read_metrics",
    "training_memory",
]
