"""Multi-scale deformable attention (Zhu et al., Deformable DETR): weighted bilinear samples of several feature maps.

Letters of the shapes: B images, S tokens of all levels, M heads, D channels per head, Q queries, L levels, P points.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from detrx.ops._extension import register_fallback

_REDUCED = (torch.float16, torch.bfloat16)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sample `value` at `sampling_locations` and sum the samples with `attention_weights`.

    A location maps to the pixel `location * size - 0.5` of its level; outside of the level the value is zero.
    Differentiable once, with respect to the three floating-point arguments, which share one dtype. Under autocast,
    arguments of reduced precision are computed in float32.

    Args:
        value: (B, S, M, D), the levels one after the other, each row by row.
        spatial_shapes: (L, 2) int64 or int32, height and width of each level.
        level_start_index: (L,) int64 or int32, index of the first token of each level.
        sampling_locations: (B, Q, M, L, P, 2), x and y in [0, 1] over the level.
        attention_weights: (B, Q, M, L, P).

    Returns:
        (B, Q, M * D)

    Raises:
        ValueError: shapes or devices that do not fit together, or level sizes that do not sum to S.
        TypeError: dtypes that do not fit together.
    """
    if torch.is_autocast_enabled(value.device.type):
        value, sampling_locations, attention_weights = (
            x.float() if x.dtype in _REDUCED else x for x in (value, sampling_locations, attention_weights)
        )
    _check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    return torch.ops.detrx.ms_deform_attn(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights
    )


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """`ms_deform_attn` written with `grid_sample`: what the kernels are tested against, and their fallback."""
    _check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    inputs = _in_full_precision(value, sampling_locations, attention_weights)
    output = inputs[0].new_zeros((batch * heads, channels, queries))
    for _, _, maps, grid, weights in _levels(spatial_shapes, level_start_index, *inputs):
        output = output + (_sample(maps, grid) * weights).sum(-1)
    return output.view(batch, heads * channels, queries).transpose(1, 2).contiguous().to(value.dtype)


def _reference_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the reference with respect to value, sampling_locations and attention_weights."""
    batch, _, heads, channels = value.shape
    queries, _, _, points = sampling_locations.shape[1:5]
    inputs = _in_full_precision(value, sampling_locations, attention_weights)
    grad_value, grad_locations, grad_attention = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in inputs)
    grad = grad_output.to(inputs[0].dtype).transpose(1, 2).reshape(batch * heads, channels, queries, 1)
    for level, tokens, maps, grid, weights in _levels(spatial_shapes, level_start_index, *inputs):
        grad_maps, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad * weights, maps, grid, _BILINEAR, _ZEROS, align_corners=False, output_mask=(True, True)
        )
        grad_value[:, tokens] = grad_maps.view(batch, heads, channels, maps.shape[2] * maps.shape[3]).permute(
            0, 3, 1, 2
        )
        grad_locations[:, :, :, level] = 2 * grad_grid.view(batch, heads, queries, points, 2).transpose(1, 2)
        per_point = (grad * _sample(maps, grid)).sum(1)
        grad_attention[:, :, :, level] = per_point.view(batch, heads, queries, points).transpose(1, 2)
    return grad_value.to(value.dtype), grad_locations.to(value.dtype), grad_attention.to(value.dtype)


_BILINEAR, _ZEROS = 0, 0  # interpolation and padding modes of aten's grid sampler


def _sample(maps: Tensor, grid: Tensor) -> Tensor:
    """Bilinear samples (B * M, D, Q, P) of `maps` (B * M, D, H, W) at `grid` (B * M, Q, P, 2), x and y in [-1, 1]."""
    return torch.ops.aten.grid_sampler_2d(maps, grid, _BILINEAR, _ZEROS, align_corners=False)


def _in_full_precision(*tensors: Tensor) -> list[Tensor]:
    return [x.float() if x.dtype in _REDUCED else x for x in tensors]


def _levels(
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    value: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Iterator[tuple[int, slice, Tensor, Tensor, Tensor]]:
    """For each non-empty level: its index, its tokens, the inputs of `_sample`, and weights (B * M, 1, Q, P)."""
    heights_widths, starts = spatial_shapes.tolist(), level_start_index.tolist()
    _check_levels(value, heights_widths, starts)
    for level, ((height, width), start) in enumerate(zip(heights_widths, starts, strict=True)):
        if height * width > 0:
            tokens = slice(start, start + height * width)
            maps = value[:, tokens].permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (height, width))
            grid = 2 * sampling_locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
            weights = attention_weights[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)
            yield level, tokens, maps, grid, weights


def _check_levels(value: Tensor, heights_widths: list[list[int]], starts: list[int]) -> None:
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


def _check_arguments(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """Everything that can be checked without reading a tensor."""
    if value.dim() != 4:
        raise ValueError(f"ms_deform_attn: value has shape {list(value.shape)}, expected (B, S, M, D)")
    if sampling_locations.dim() != 6:
        raise ValueError(
            f"ms_deform_attn: sampling_locations has shape {list(sampling_locations.shape)}, "
            f"expected (B, Q, M, L, P, 2) for value of shape {list(value.shape)}"
        )
    batch, _, heads, _ = value.shape
    _, queries, _, levels, points, _ = sampling_locations.shape
    _check_shape("sampling_locations", sampling_locations, (batch, queries, heads, levels, points, 2), "value", value)
    _check_shape(
        "attention_weights", attention_weights, (batch, queries, heads, levels, points),
        "sampling_locations", sampling_locations,
    )  # fmt: skip
    _check_shape("spatial_shapes", spatial_shapes, (levels, 2), "sampling_locations", sampling_locations)
    _check_shape("level_start_index", level_start_index, (levels,), "spatial_shapes", spatial_shapes)
    for name, tensor in (("sampling_locations", sampling_locations), ("attention_weights", attention_weights)):
        if tensor.dtype != value.dtype:
            raise TypeError(
                f"ms_deform_attn: {name} of shape {list(tensor.shape)} has dtype {tensor.dtype}, "
                f"value of shape {list(value.shape)} has {value.dtype}"
            )
    for name, tensor in (("spatial_shapes", spatial_shapes), ("level_start_index", level_start_index)):
        if tensor.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"ms_deform_attn: {name} has dtype {tensor.dtype}, expected torch.int64 or torch.int32")
    for name, tensor in (
        ("spatial_shapes", spatial_shapes),
        ("level_start_index", level_start_index),
        ("sampling_locations", sampling_locations),
        ("attention_weights", attention_weights),
    ):
        if tensor.device != value.device:
            raise ValueError(
                f"ms_deform_attn: {name} of shape {list(tensor.shape)} is on {tensor.device}, "
                f"value of shape {list(value.shape)} on {value.device}"
            )


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], reason_name: str, reason: Tensor) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(
            f"ms_deform_attn: {name} has shape {list(tensor.shape)}, expected {list(expected)} "
            f"to fit {reason_name} of shape {list(reason.shape)}"
        )


_SCHEMA_INPUTS = (
    "Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, Tensor attention_weights"
)
register_fallback("ms_deform_attn", f"({_SCHEMA_INPUTS}) -> Tensor", ms_deform_attn_reference)
register_fallback(
    "ms_deform_attn_backward",
    f"(Tensor grad_output, {_SCHEMA_INPUTS}) -> (Tensor, Tensor, Tensor)",
    _reference_backward,
)


@torch.library.register_fake("detrx::ms_deform_attn")
def _fake(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    _check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    return value.new_empty((value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3]))


@torch.library.register_fake("detrx::ms_deform_attn_backward")
def _fake_backward(grad_output, value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    return tuple(x.new_empty(x.shape) for x in (value, sampling_locations, attention_weights))


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_output):
    grad_value, grad_locations, grad_attention = torch.ops.detrx.ms_deform_attn_backward(
        grad_output, *ctx.saved_tensors
    )
    return grad_value, None, None, grad_locations, grad_attention


torch.library.register_autograd("detrx::ms_deform_attn", _backward, setup_context=_setup_context)
