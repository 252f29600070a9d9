"""Multi-scale deformable attention (Zhu et al., Deformable DETR): weighted bilinear samples of several feature maps.

Letters of the shapes: B images, S tokens of all levels, M heads, D channels per head, Q queries, L levels, P points.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from detrx.ops._deform_attn_checks import check_arguments, check_levels
from detrx.ops._extension import register_fallback
from detrx.ops._precision import autocast_to_full, in_full_precision


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sample `value` at `sampling_locations` and sum the samples with `attention_weights`.

    A location maps to the pixel `location * size - 0.5` of its level; outside of the level the value is zero.
    Differentiable once, with respect to the three floating-point arguments, which must have the same dtype. float16 and
    bfloat16 are computed in float32. Under autocast, the arguments are cast to float32, because locations need its
    precision.

    Args:
        value: (B, S, M, D), the levels one after the other, each row by row.
        spatial_shapes: (L, 2) int64 or int32, height and width of each level.
        level_start_index: (L,) int64 or int32, index of the first token of each level.
        sampling_locations: (B, Q, M, L, P, 2), x and y in [0, 1] over the level.
        attention_weights: (B, Q, M, L, P).

    Returns:
        (B, Q, M * D)

    Raises:
        ValueError: shapes or devices do not fit together, or level sizes do not sum to S.
        TypeError: dtypes do not fit together.
    """
    value, sampling_locations, attention_weights = autocast_to_full(value, sampling_locations, attention_weights)
    check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    return torch.ops.detrx.ms_deform_attn(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights
    )


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    shapes: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """`ms_deform_attn` written with `grid_sample`: what the kernels are tested against, and their fallback.

    `shapes` are the values of `spatial_shapes`, for callers that know them on the host: in a traced graph the values of
    a tensor cannot be read.
    """
    check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    inputs = in_full_precision(value, sampling_locations, attention_weights)
    output = inputs[0].new_zeros((batch * heads, channels, queries))
    for _, _, maps, grid, weights in _levels(spatial_shapes, level_start_index, *inputs, shapes=shapes):
        output = output + (_sample(maps, grid) * weights).sum(-1)
    return output.view(batch, heads * channels, queries).transpose(1, 2).contiguous().to(value.dtype)


def reference_backward(
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
    inputs = in_full_precision(value, sampling_locations, attention_weights)
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


def _levels(
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    value: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    shapes: Sequence[tuple[int, int]] | None = None,
) -> Iterator[tuple[int, slice, Tensor, Tensor, Tensor]]:
    """For each non-empty level: its index, its tokens, the inputs of `_sample`, and weights (B * M, 1, Q, P)."""
    if shapes is None:
        heights_widths, starts = spatial_shapes.tolist(), level_start_index.tolist()
    else:
        heights_widths, areas = [list(shape) for shape in shapes], [height * width for height, width in shapes]
        starts = [sum(areas[:level]) for level in range(len(areas))]
    check_levels(value, heights_widths, starts)
    for level, ((height, width), start) in enumerate(zip(heights_widths, starts, strict=True)):
        if height * width > 0:
            tokens = slice(start, start + height * width)
            maps = value[:, tokens].permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (height, width))
            grid = 2 * sampling_locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
            weights = attention_weights[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)
            yield level, tokens, maps, grid, weights


_SCHEMA_INPUTS = (
    "Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, Tensor attention_weights"
)
register_fallback("ms_deform_attn", f"({_SCHEMA_INPUTS}) -> Tensor", ms_deform_attn_reference)
register_fallback(
    "ms_deform_attn_backward",
    f"(Tensor grad_output, {_SCHEMA_INPUTS}) -> (Tensor, Tensor, Tensor)",
    reference_backward,
)


@torch.library.register_fake("detrx::ms_deform_attn")
def _fake(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
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
