"""Saving and loading checkpoints."""

from detrx.d2 import USE_DETECTRON2

if USE_DETECTRON2:
    from detectron2.checkpoint import DetectionCheckpointer
else:
    from detrx.d2.embedded.checkpoint import DetectionCheckpointer

__all__ = ["DetectionCheckpointer"]
