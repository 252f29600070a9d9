"""Multi-scale deformable attention that computes sampling locations and attention weights inside of the operator.

Letters of the shapes: B images, S tokens of all levels, M heads, D channels per head, Q queries, L levels, P points.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from detrx.ops._deform_attn_checks import check_arguments
from detrx.ops._extension import register_fallback
from detrx.ops._precision import autocast_to_full, autocast_to_reduced, in_full_precision
from detrx.ops.ms_deform_attn import ms_deform_attn_reference, reference_backward


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """`ms_deform_attn`, with sampling locations and attention weights computed on the fly, forward and backward.

    The weights are the softmax of `logits` over the L * P points of a query and head. The locations are
    `reference + offset / (width, height)` for reference points, `centre + offset / P * (w, h) / 2` for boxes.

    Differentiable once, with respect to the four floating-point arguments. They must have the same dtype, except that
    `reference` may be float32 if the others are float16 or bfloat16; these are computed in float32. Under autocast,
    value, offsets and logits are cast to its dtype, and a reference of reduced precision to float32.

    Args:
        value: (B, S, M, D), the levels one after the other, each row by row.
        spatial_shapes: (L, 2) int64 or int32, height and width of each level.
        level_start_index: (L,) int64 or int32, index of the first token of each level.
        reference: (B, Q, L, 2) xy or (B, Q, L, 4) cxcywh, in [0, 1] over the level.
        offsets: (B, Q, M, L, P, 2), x and y, in pixels of the level for points.
        logits: (B, Q, M, L, P) or (B, Q, M, L * P).

    Returns:
        (B, Q, M * D)

    Raises:
        ValueError: shapes or devices do not fit together, or level sizes do not sum to S.
        TypeError: dtypes do not fit together.
    """
    value, offsets, logits = autocast_to_reduced(value, offsets, logits)
    (reference,) = autocast_to_full(reference)
    if logits.dim() == 4 and offsets.dim() == 6 and logits.shape[3] == offsets.shape[3] * offsets.shape[4]:
        logits = logits.unflatten(3, offsets.shape[3:5])
    check_arguments(value, spatial_shapes, level_start_index, offsets, logits, reference)
    return torch.ops.detrx.ms_deform_attn_fused(value, spatial_shapes, level_start_index, reference, offsets, logits)


def ms_deform_attn_fused_reference(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
    shapes: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """`ms_deform_attn_fused` in PyTorch: what the kernels are tested against, and their fallback.

    `shapes`: see `ms_deform_attn_reference`.
    """
    check_arguments(value, spatial_shapes, level_start_index, offsets, logits, reference)
    wide_value, reference, offsets, logits = in_full_precision(value, reference, offsets, logits)
    locations, weights = locations_and_weights(spatial_shapes, reference, offsets, logits)
    output = ms_deform_attn_reference(wide_value, spatial_shapes, level_start_index, locations, weights, shapes)
    return output.to(value.dtype)


def locations_and_weights(
    spatial_shapes: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Sampling locations (B, Q, M, L, P, 2) and attention weights (B, Q, M, L, P) of `ms_deform_attn_fused`."""
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    reference = reference[:, :, None, :, None]
    if reference.shape[-1] == 2:
        return reference + offsets / _divisors(spatial_shapes, offsets.dtype), weights
    points = offsets.shape[4]
    return reference[..., :2] + offsets / points * reference[..., 2:] * 0.5, weights


def _divisors(spatial_shapes: Tensor, dtype: torch.dtype) -> Tensor:
    """(L, 1, 2) width and height of the levels; 1 for empty levels, which contribute nothing."""
    return spatial_shapes.flip(-1).clamp(min=1).to(dtype)[:, None]


def _fused_reference_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
    reference_needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to value, offsets, logits and reference; the last is empty if it is not needed."""
    wide_grad, wide_value, wide_reference, wide_offsets, wide_logits = in_full_precision(
        grad_output, value, reference, offsets, logits
    )
    locations, weights = locations_and_weights(spatial_shapes, wide_reference, wide_offsets, wide_logits)
    grad_value, grad_locations, grad_weights = reference_backward(
        wide_grad, wide_value, spatial_shapes, level_start_index, locations, weights
    )
    products = weights * grad_weights
    grad_logits = products - weights * products.sum((3, 4), keepdim=True)
    if reference.shape[3] == 2:
        grad_offsets = grad_locations / _divisors(spatial_shapes, wide_offsets.dtype)
    else:
        grad_offsets = grad_locations * 0.5 * wide_reference[:, :, None, :, None, 2:] / offsets.shape[4]
    grad_reference = reference.new_empty(0)
    if reference_needs_grad:
        grad_reference = grad_locations.sum((2, 4))
        if reference.shape[3] == 4:
            grad_extents = (grad_locations * 0.5 * wide_offsets / offsets.shape[4]).sum((2, 4))
            grad_reference = torch.cat([grad_reference, grad_extents], dim=3)
        grad_reference = grad_reference.to(reference.dtype)
    return grad_value.to(value.dtype), grad_offsets.to(value.dtype), grad_logits.to(value.dtype), grad_reference


_SCHEMA_INPUTS = (
    "Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor reference, Tensor offsets, Tensor logits"
)
register_fallback("ms_deform_attn_fused", f"({_SCHEMA_INPUTS}) -> Tensor", ms_deform_attn_fused_reference)
register_fallback(
    "ms_deform_attn_fused_backward",
    f"(Tensor grad_output, {_SCHEMA_INPUTS}, bool reference_needs_grad) -> (Tensor, Tensor, Tensor, Tensor)",
    _fused_reference_backward,
)


@torch.library.register_fake("detrx::ms_deform_attn_fused")
def _fake(value, spatial_shapes, level_start_index, reference, offsets, logits):
    check_arguments(value, spatial_shapes, level_start_index, offsets, logits, reference)
    return value.new_empty((value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3]))


@torch.library.register_fake("detrx::ms_deform_attn_fused_backward")
def _fake_backward(
    grad_output, value, spatial_shapes, level_start_index, reference, offsets, logits, reference_needs_grad
):
    grads = [x.new_empty(x.shape) for x in (value, offsets, logits)]
    return (*grads, reference.new_empty(reference.shape if reference_needs_grad else 0))


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_output):
    needed = ctx.needs_input_grad[3]
    grad_value, grad_offsets, grad_logits, grad_reference = torch.ops.detrx.ms_deform_attn_fused_backward(
        grad_output, *ctx.saved_tensors, needed
    )
    return grad_value, None, None, grad_reference if needed else None, grad_offsets, grad_logits


torch.library.register_autograd("detrx::ms_deform_attn_fused", _backward, setup_context=_setup_context)
