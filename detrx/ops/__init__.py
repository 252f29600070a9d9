"""The operators of detrx: compiled CPU and CUDA kernels under `torch.ops.detrx`, with PyTorch fallbacks."""

from detrx.ops._extension import extension_info, has_kernel, operators
from detrx.ops.expert_linear import can_use_grouped_mm, expert_ends, expert_linear
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
from detrx.ops.ms_deform_attn_fused import ms_deform_attn_fused, ms_deform_attn_fused_reference
from detrx.ops.query_routing import (
    QueryRoute,
    query_gather,
    query_gather_reference,
    query_route,
    query_route_reference,
    query_scatter,
    query_scatter_reference,
)

__all__ = [
    "QueryRoute",
    "Routing",
    "can_use_grouped_mm",
    "expert_ends",
    "expert_linear",
    "extension_info",
    "has_kernel",
    "moe_combine",
    "moe_combine_reference",
    "moe_dispatch",
    "moe_dispatch_reference",
    "moe_route",
    "moe_route_reference",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "ms_deform_attn_fused_reference",
    "ms_deform_attn_reference",
    "operators",
    "query_gather",
    "query_gather_reference",
    "query_route",
    "query_route_reference",
    "query_scatter",
    "query_scatter_reference",
]
