"""Mr. DETR: instructive multi-route training (arXiv 2412.10028)."""

from .mr_detr import COMBINATIONS, MrDETR
from .score_mixing import MixedDetections

__all__ = ["COMBINATIONS", "MixedDetections", "MrDETR"]
