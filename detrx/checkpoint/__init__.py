"""Saving, loading and converting weights."""

from .convert import ConversionError, convert_checkpoint, detect_format
from .files import CheckpointError, read_weights, write_weights

__all__ = [
    "CheckpointError",
    "ConversionError",
    "convert_checkpoint",
    "detect_format",
    "read_weights",
    "write_weights",
]
