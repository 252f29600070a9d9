"""Looking at what models do: drawings of detections, training curves, costs."""

from .cost import model_cost
from .curves import Run, plot_runs, read_metrics
from .flops import count_flops
from .visualize import Box, compare_with_truth, contact_sheet, draw_boxes

__all__ = [
    "Box",
    "Run",
    "compare_with_truth",
    "contact_sheet",
    "count_flops",
    "draw_boxes",
    "model_cost",
    "plot_runs",
    "read_metrics",
]
