"""H-DETR (arXiv 2207.13080): three methods for hybrid matching."""

from .h_detr import HybridBranch, HybridEpoch, HybridLayer

__all__ = ["HybridBranch", "HybridEpoch", "HybridLayer"]
