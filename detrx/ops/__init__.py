"""The operators of detrx: compiled CPU and CUDA kernels under `torch.ops.detrx`, with PyTorch fallbacks."""

from detrx.ops._extension import extension_info, has_kernel, operators
from detrx.ops.moe import (
    Routing,
    moe_combine,
    moe_combine_reference,
    moe_dispatch,
    moe_dispatch_reference,
    moe_route,
    moe_route_reference,
)
from detrx.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_reference

__all__ = [
    "Routing",
    "extension_info",
    "has_kernel",
    "moe_combine",
    "moe_combine_reference",
    "moe_dispatch",
    "moe_dispatch_reference",
    "moe_route",
    "moe_route_reference",
    "ms_deform_attn",
    "ms_deform_attn_reference",
    "operators",
]
