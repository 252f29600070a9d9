"""Mr. DETR and Mr. DETR++: instructive multi-route training (arXiv 2412.10028)."""

from .assignment import AnchorMatcher, VotingAssigner
from .calibration import CalibratedDetections, CalibratedHeads, QualityLoss
from .moe import ExpertLoads, ScaleAwareEncoderLayer
from .mr_detr import COMBINATIONS, MrDETR
from .score_mixing import MixedDetections

__all__ = [
    "COMBINATIONS",
    "AnchorMatcher",
    "CalibratedDetections",
    "CalibratedHeads",
    "ExpertLoads",
    "MixedDetections",
    "MrDETR",
    "QualityLoss",
    "ScaleAwareEncoderLayer",
    "VotingAssigner",
]
