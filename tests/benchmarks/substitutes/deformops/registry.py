"""The signature of deformops.registry.msda, in PyTorch."""

import enum

from torch import Tensor

from detrx.ops import ms_deform_attn_reference


class Backend(enum.Enum):
    CUDA = enum.auto()
    TRITON = enum.auto()
    EAGER = enum.auto()


def msda(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    /,
    *,
    method: str,
    backend: Backend,
) -> Tensor:
    assert isinstance(backend, Backend) and method in ("linear", "softmax") and attention_weights.dim() == 4
    weights = attention_weights.softmax(-1) if method == "softmax" else attention_weights
    weights = weights.view(sampling_locations.shape[:-1]).to(sampling_locations.dtype)
    wide = value.to(sampling_locations.dtype)
    output = ms_deform_attn_reference(wide, spatial_shapes, level_start_index, sampling_locations, weights)
    return output.to(value.dtype)
