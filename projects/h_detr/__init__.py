"""H-DETR (arXiv 2207.13080): hybrid matching, as three methods."""

from .h_detr import HybridBranch, HybridEpoch, HybridLayer

__all__ = ["HybridBranch", "HybridEpoch", "HybridLayer"]
