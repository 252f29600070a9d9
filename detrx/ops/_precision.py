"""Reduced precision, and all that autocast means for the operators.

An operator gives its arguments to one of the `autocast_...` functions, which do nothing where autocast is off. The
tensors of one call are of one device. Nobody gets float64 by accident: it stays.
"""

import torch
from torch import Tensor

REDUCED = (torch.float16, torch.bfloat16)


def in_full_precision(*tensors: Tensor) -> list[Tensor]:
    """The tensors, those of reduced precision in float32."""
    return [x.float() if x.dtype in REDUCED else x for x in tensors]


def autocast_to_reduced(*tensors: Tensor) -> list[Tensor]:
    """For what loses nothing by it: in the dtype of autocast."""
    return [x.to(reduced_dtype(x)) for x in tensors]


def reduced_dtype(x: Tensor) -> torch.dtype:
    """What `autocast_to_reduced` makes the dtype of `x`."""
    dtype = _autocast_dtype(x)
    return x.dtype if dtype is None or x.dtype == torch.float64 else dtype


def autocast_to_full(*tensors: Tensor) -> list[Tensor]:
    """For what needs its precision: not below float32."""
    return list(tensors) if _autocast_dtype(tensors[0]) is None else in_full_precision(*tensors)


def autocast_to_wider(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """For what only moves numbers: in the wider dtype of the two."""
    if _autocast_dtype(a) is None:
        return a, b
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype in which autocast computes on the device of `x`; None where it does nothing there."""
    device_type = x.device.type
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):  # an error for "meta"
        return None
    return torch.get_autocast_dtype(device_type)
