"""Export of detectors to graphs that run without detrx: torch.export programs and ONNX files."""

from .compare import check_same_detections, detection_difference, example_images
from .files import check_onnx_packages, save_onnx, save_program
from .graph import DetectionGraph
from .program import export_program

__all__ = [
    "DetectionGraph",
    "check_onnx_packages",
    "check_same_detections",
    "detection_difference",
    "example_images",
    "export_program",
    "save_onnx",
    "save_program",
]
