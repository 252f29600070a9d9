"""`digits`: a detection dataset without a download, drawn from scikit-learn's bundled handwritten digits."""

from .generate import CLASSES, SPLITS, prepare, split_samples
from .render import overlap_over_smaller, render_canvas
from .spec import BACKGROUNDS, SHAPES, VARIANTS, DigitsSpec

__all__ = [
    "BACKGROUNDS",
    "CLASSES",
    "SHAPES",
    "SPLITS",
    "VARIANTS",
    "DigitsSpec",
    "overlap_over_smaller",
    "prepare",
    "render_canvas",
    "split_samples",
]
