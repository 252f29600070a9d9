"""Saving, loading and converting weights."""

from .average import average_checkpoints, last_checkpoints
from .convert import CheckpointConversionError, convert_checkpoint, detect_format
from .files import CheckpointError, read_weights, write_weights

__all__ = [
    "CheckpointConversionError",
    "CheckpointError",
    "average_checkpoints",
    "convert_checkpoint",
    "detect_format",
    "last_checkpoints",
    "read_weights",
    "write_weights",
]
