"""D3ETR (arXiv 2211.09768): decoder distillation."""

from .distillation import Distillation

__all__ = ["Distillation"]
