"""The operators of detrx in terms of PyTorch operators that have ONNX counterparts, for exported graphs.

In an exported graph, shapes must not depend on data and the host cannot read values; and ONNX has no stable sort.
Therefore every expert processes all tokens, and empty query slots are computed as well.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detrx.ops import (
    moe_combine_reference,
    moe_dispatch_reference,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
)


def decompositions(shapes: Sequence[tuple[int, int]]) -> dict[Any, Callable[..., Any]]:
    """The replacement of each operator `torch.ops.detrx.*`.

    Args:
        shapes: (H_l, W_l) of each level that deformable attention reads; the same for all layers.
    """
    operators = torch.ops.detrx
    return {
        operators.ms_deform_attn: partial(ms_deform_attn_reference, shapes=shapes),
        operators.ms_deform_attn_fused: partial(ms_deform_attn_fused_reference, shapes=shapes),
        operators.moe_route: moe_route,
        operators.moe_dispatch: moe_dispatch_reference,
        operators.moe_combine: moe_combine_reference,
        operators.expert_linear: expert_linear,
        operators.query_route: query_route,
        operators.query_gather: query_gather,
        operators.query_scatter: query_scatter,
    }


def moe_route(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`moe_route` with a counting sort. The order of equal logits depends on the runtime."""
    values, experts = logits.topk(k, dim=1)
    chosen = experts.flatten()
    is_of = (chosen[:, None] == torch.arange(logits.shape[1], device=logits.device)).long()
    counts = is_of.sum(0)
    ends = counts.cumsum(0)
    before = ends - counts + is_of.cumsum(0) - 1
    place = before.gather(1, chosen[:, None])[:, 0]
    order = torch.zeros_like(chosen).scatter(0, place, torch.arange(chosen.shape[0], device=chosen.device))
    return values.softmax(1), experts, counts, ends.to(torch.int32), order, place.view_as(experts)


def expert_linear(x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor, relu: bool) -> Tensor:
    """`expert_linear` that applies all experts to all rows and selects the output of each row's expert."""
    row = torch.arange(x.shape[0], device=x.device)
    expert = (row[:, None] >= ends).sum(1)
    output = torch.matmul(x, weight) + bias[:, None]
    output = output.gather(0, expert[None, :, None].expand(1, -1, output.shape[2]))[0]
    return output.relu() if relu else output


def query_route(keep: Tensor, capacity: int | None = None) -> tuple[Tensor, Tensor]:
    """`query_route` with `capacity` slots, by default as many as queries."""
    queries = keep.shape[1]
    slots = queries if capacity is None else capacity
    valid = torch.arange(slots, device=keep.device) < keep.sum(1, keepdim=True)
    slot = (keep.cumsum(1) - 1).masked_fill(~keep, queries)
    query = torch.arange(queries, device=keep.device).expand(keep.shape)
    index = torch.zeros_like(query[:, :1]).repeat(1, queries + 1).scatter(1, slot, query)
    return index[:, :slots].masked_fill(~valid, 0), valid


def query_gather(x: Sequence[Tensor], index: Tensor, valid: Tensor) -> list[Tensor]:
    packed = []
    for tensor in x:
        route, holds = (_expand(each, tensor) for each in (index, valid))
        packed.append(tensor.gather(1, route).masked_fill(~holds, 0))
    return packed


def query_scatter(base: Sequence[Tensor], packed: Sequence[Tensor], index: Tensor, valid: Tensor) -> list[Tensor]:
    """`query_scatter` that writes padding slots to an extra last row, which is then cut off."""
    merged = []
    for tensor, rows in zip(base, packed, strict=True):
        queries = tensor.shape[1]
        route = _expand(index.masked_fill(~valid, queries), tensor)
        longer = torch.cat([tensor, tensor[:, :1]], dim=1)
        merged.append(longer.scatter(1, route, rows)[:, :queries])
    return merged


def _expand(route: Tensor, tensor: Tensor) -> Tensor:
    """Expand (B, K) to (B, K, ...) with the trailing sizes of a tensor (B, N, ...)."""
    further = tensor.shape[2:]
    return route.view(*route.shape, *(1 for _ in further)).expand(*route.shape, *further)
