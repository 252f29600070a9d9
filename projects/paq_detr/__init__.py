"""PaQ-DETR (arXiv 2603.06917): queries mixed from shared patterns, and quality-aware assignment."""

from .assignment import QualityAwareAssigner, QualityAwareAssignment
from .patterns import PatternContent, PatternDiversity, WeightGenerator, diversity_loss

__all__ = [
    "PatternContent",
    "PatternDiversity",
    "QualityAwareAssigner",
    "QualityAwareAssignment",
    "WeightGenerator",
    "diversity_loss",
]
