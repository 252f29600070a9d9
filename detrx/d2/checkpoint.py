"""Saving and loading checkpoints."""

from detrx.d2 import USE_DETECTRON2

if USE_DETECTRON2:
    from detectron2.checkpoint import Checkpointer, DetectionCheckpointer, PeriodicCheckpointer
else:
    from detrx.d2.embedded.checkpoint import Checkpointer, DetectionCheckpointer, PeriodicCheckpointer

__all__ = ["Checkpointer", "DetectionCheckpointer", "PeriodicCheckpointer"]
