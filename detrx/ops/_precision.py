"""Reduced precision and autocast for the operators.

An operator passes its arguments to one of the `autocast_...` functions, which do nothing if autocast is off. All
tensors of a call must be on the same device. float64 tensors are never cast.
"""

import torch
from torch import Tensor

REDUCED = (torch.float16, torch.bfloat16)


def in_full_precision(*tensors: Tensor) -> list[Tensor]:
    """Convert tensors of reduced precision to float32; others are returned unchanged."""
    return [x.float() if x.dtype in REDUCED else x for x in tensors]


def autocast_to_reduced(*tensors: Tensor) -> list[Tensor]:
    """For operators that do not need more precision: convert to the dtype of autocast."""
    return [x.to(reduced_dtype(x)) for x in tensors]


def reduced_dtype(x: Tensor) -> torch.dtype:
    """The dtype to which `autocast_to_reduced` converts `x`."""
    dtype = _autocast_dtype(x)
    return x.dtype if dtype is None or x.dtype == torch.float64 else dtype


def autocast_to_full(*tensors: Tensor) -> list[Tensor]:
    """For operators that need precision: convert to float32 if the precision is lower."""
    return list(tensors) if _autocast_dtype(tensors[0]) is None else in_full_precision(*tensors)


def autocast_to_wider(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """For operators that only move data: convert both to the wider of the two dtypes."""
    if _autocast_dtype(a) is None:
        return a, b
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype of autocast on the device of `x`; None if autocast is off there."""
    device_type = x.device.type
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):  # an error for "meta"
        return None
    return torch.get_autocast_dtype(device_type)
