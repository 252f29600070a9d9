"""D3ETR (arXiv 2211.09768): decoder distillation, and the distillation of encoder features that it is compared with."""

from .distillation import Distillation
from .feature_losses import FGD, MGD, DeFeat, FitNet
from .features import EncoderDistillation

__all__ = ["FGD", "MGD", "DeFeat", "Distillation", "EncoderDistillation", "FitNet"]
