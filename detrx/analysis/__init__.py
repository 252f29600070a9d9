"""Looking at what models do: drawings of detections, contact sheets, training curves."""

from .curves import Run, plot_runs, read_metrics
from .visualize import Box, compare_with_truth, contact_sheet, draw_boxes

__all__ = ["Box", "Run", "compare_with_truth", "contact_sheet", "draw_boxes", "plot_runs", "read_metrics"]
