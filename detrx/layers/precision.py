"""Geometry is computed in float32; parameters may have another dtype."""

import torch
from torch import Tensor


def cast_like(x: Tensor, other: Tensor) -> Tensor:
    """`x` in the dtype of `other`; `x` itself under autocast, which casts where an operator needs it."""
    if x.dtype == other.dtype:
        return x
    autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)  # an error for "meta"
    return x if autocast else x.to(other.dtype)
