"""Boxes, instances and padded image batches."""

from detrx.d2 import USE_DETECTRON2

if USE_DETECTRON2:
    from detectron2.structures import Boxes, BoxMode, ImageList, Instances, pairwise_iou
else:
    from detrx.d2.embedded.structures import Boxes, BoxMode, ImageList, Instances, pairwise_iou

__all__ = ["BoxMode", "Boxes", "ImageList", "Instances", "pairwise_iou"]
