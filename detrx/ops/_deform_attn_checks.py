"""Argument checks of the deformable attention operators, the same as in csrc/ms_deform_attn/ms_deform_attn.cpp."""

import torch
from torch import Tensor

from detrx.ops._precision import REDUCED


def check_arguments(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    points: Tensor,
    weights: Tensor,
    reference: Tensor | None = None,
) -> None:
    """Check everything that can be checked without reading the values of a tensor.

    For `ms_deform_attn`, `points` are sampling_locations and `weights` are attention_weights. With a `reference`, the
    operator is `ms_deform_attn_fused`, and they are offsets and logits.

    Raises:
        ValueError: shapes or devices do not fit together.
        TypeError: dtypes do not fit together.
    """
    if reference is None:
        op, points_name, weights_name = "ms_deform_attn", "sampling_locations", "attention_weights"
    else:
        op, points_name, weights_name = "ms_deform_attn_fused", "offsets", "logits"
    if value.dim() != 4:
        raise ValueError(f"{op}: value has shape {list(value.shape)}, expected (B, S, M, D)")
    if points.dim() != 6:
        raise ValueError(
            f"{op}: {points_name} has shape {list(points.shape)}, "
            f"expected (B, Q, M, L, P, 2) for value of shape {list(value.shape)}"
        )
    batch, _, heads, _ = value.shape
    _, queries, _, levels, count, _ = points.shape
    _check_shape(op, points_name, points, (batch, queries, heads, levels, count, 2), "value", value)
    _check_shape(op, weights_name, weights, (batch, queries, heads, levels, count), points_name, points)
    _check_shape(op, "spatial_shapes", spatial_shapes, (levels, 2), points_name, points)
    _check_shape(op, "level_start_index", level_start_index, (levels,), "spatial_shapes", spatial_shapes)
    floats = [(points_name, points), (weights_name, weights)]
    if reference is not None:
        if reference.dim() != 4 or reference.shape[3] not in (2, 4):
            raise ValueError(
                f"{op}: reference has shape {list(reference.shape)}, expected (B, Q, L, 2) or (B, Q, L, 4) "
                f"for value of shape {list(value.shape)}"
            )
        _check_shape(op, "reference", reference, (batch, queries, levels, reference.shape[3]), points_name, points)
        _check_device(op, "reference", reference, value)
        if not (value.dtype in REDUCED and reference.dtype == torch.float32):
            floats.append(("reference", reference))
    for name, tensor in floats:
        if tensor.dtype != value.dtype:
            raise TypeError(
                f"{op}: {name} of shape {list(tensor.shape)} has dtype {tensor.dtype}, "
                f"value of shape {list(value.shape)} has {value.dtype}"
            )
        _check_device(op, name, tensor, value)
    for name, tensor in (("spatial_shapes", spatial_shapes), ("level_start_index", level_start_index)):
        if tensor.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{op}: {name} has dtype {tensor.dtype}, expected torch.int64 or torch.int32")
        _check_device(op, name, tensor, value)


def check_levels(value: Tensor, heights_widths: list[list[int]], starts: list[int]) -> None:
    """Check that the levels, one after the other, are the tokens of `value` (B, S, M, D).

    Raises:
        ValueError: they are not.
    """
    total = 0
    for level, ((height, width), start) in enumerate(zip(heights_widths, starts, strict=True)):
        if height < 0 or width < 0:
            raise ValueError(f"ms_deform_attn: spatial_shapes has a level of {height} x {width}")
        if start != total:
            raise ValueError(
                f"ms_deform_attn: level_start_index[{level}] is {start}, expected {total}, "
                "the number of tokens in the levels of spatial_shapes before it"
            )
        total += height * width
    if total != value.shape[1]:
        raise ValueError(
            f"ms_deform_attn: the levels of spatial_shapes {heights_widths} hold {total} tokens, "
            f"but value of shape {list(value.shape)} (B, S, M, D) has S = {value.shape[1]}"
        )


def _check_shape(
    op: str, name: str, tensor: Tensor, expected: tuple[int, ...], reason_name: str, reason: Tensor
) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(
            f"{op}: {name} has shape {list(tensor.shape)}, expected {list(expected)} "
            f"to fit {reason_name} of shape {list(reason.shape)}"
        )


def _check_device(op: str, name: str, tensor: Tensor, value: Tensor) -> None:
    if tensor.device != value.device:
        raise ValueError(
            f"{op}: {name} of shape {list(tensor.shape)} is on {tensor.device}, "
            f"value of shape {list(value.shape)} on {value.device}"
        )
