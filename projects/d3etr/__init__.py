"""D3ETR: decoder distillation, as a method."""

from .distillation import Distillation

__all__ = ["Distillation"]
