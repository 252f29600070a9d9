"""Deformable attention for benchmarks: inputs of the usual shapes, and what our operators are compared with."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from published import Published
from torch import Tensor

from detrx.ops import (
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
)

LEVELS = ((100, 167), (50, 84), (25, 42), (13, 21))
"""Sizes of the maps of an image of 800x1333."""
HEADS, CHANNELS, POINTS = 8, 32, 4
QUERIES = {"encoder": None, "decoder300": 300, "decoder900": 900}
"""Queries of each shape; None: one for each token."""
OPERATORS = {"unfused": ms_deform_attn, "fused": ms_deform_attn_fused}
"""The operator from locations and weights, and the one from reference points, offsets and logits."""
Operator = Callable[..., Tensor]


def make_inputs(
    form: str,
    shape: str,
    batch: int,
    device: str,
    dtype: torch.dtype,
    levels: Sequence[tuple[int, int]] = LEVELS,
) -> list[Tensor]:
    """Random arguments of an operator, the same in every call; sampling points lie some two pixels around their query.

    They are drawn on the device: those of a large batch would take seconds on a CPU.
    """
    torch.manual_seed(0)
    shapes = torch.tensor(levels, device=device)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    tokens = sum(height * width for height, width in levels)
    if QUERIES[shape] is None:
        centres = torch.cat([_pixel_centres(height, width) for height, width in levels]).to(device)
    else:
        centres = torch.rand(QUERIES[shape], 2, device=device)
    queries = len(centres)
    reference = centres[None, :, None].repeat(batch, 1, len(levels), 1)
    offsets = 2 * torch.randn(batch, queries, HEADS, len(levels), POINTS, 2, device=device)
    logits = torch.randn(batch, queries, HEADS, len(levels), POINTS, device=device)
    value = torch.randn(batch, tokens, HEADS, CHANNELS, device=device)
    if form == "unfused":
        offsets, logits = locations_and_weights(shapes, reference, offsets, logits)
    value, offsets, logits = (x.to(dtype).requires_grad_() for x in (value, offsets, logits))
    geometry = [shapes, starts]
    if form == "fused":
        geometry.append(reference.to(torch.promote_types(dtype, torch.float32)))
    return [value, *geometry, offsets, logits]


def _pixel_centres(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x, y], -1).view(-1, 2)


def sampling_locations(shapes: Tensor, reference: Tensor, offsets: Tensor) -> Tensor:
    return reference[:, :, None, :, None] + offsets / shapes.flip(1)[:, None]


def locations_and_weights(shapes: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    return sampling_locations(shapes, reference, offsets), logits.flatten(3).softmax(-1).view_as(logits)


def forward(operator: Operator, inputs: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return operator(*inputs)


def forward_backward(operator: Operator, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    output = operator(*inputs)
    return torch.autograd.grad(output, [x for x in inputs if x.requires_grad], torch.ones_like(output))


def floor_bytes(inputs: list[Tensor]) -> tuple[int, int]:
    """Bytes of forward, and of forward and backward, if every input and output moved once."""
    value, offsets = inputs[0], inputs[-2]
    output = offsets.shape[0] * offsets.shape[1] * HEADS * CHANNELS * value.element_size()
    read = sum(x.nbytes for x in inputs)
    return read + output, 2 * (read + output) + sum(x.nbytes for x in inputs if x.requires_grad)


@dataclass(frozen=True)
class Rival:
    """Another implementation.

    Attributes:
        operators: by form, with the arguments of ours.
        float32_only: gets float32 arguments whatever dtype ours has.
        float32_locations: gets locations in float32 whatever dtype the values have.
    """

    operators: dict[str, Operator]
    float32_only: bool = False
    float32_locations: bool = False

    def call(
        self, form: str, shape: str, batch: int, inputs: list[Tensor], levels: Sequence[tuple[int, int]] = LEVELS
    ) -> tuple[Operator, list[Tensor]]:
        """The operator of a form, and its arguments where ours gets `inputs` of `make_inputs`."""
        device, dtype = inputs[0].device.type, inputs[0].dtype
        if dtype != torch.float32 and (self.float32_only or self.float32_locations):
            precise = make_inputs(form, shape, batch, device, torch.float32, levels)
            if self.float32_only:
                inputs = precise
            elif form == "unfused":
                inputs = [*inputs[:3], precise[3], inputs[4]]
        return self.operators[form], inputs


def grid_sample(levels: Sequence[tuple[int, int]] = LEVELS) -> Rival:
    """PyTorch code with `grid_sample`."""
    return Rival(
        {
            "unfused": functools.partial(ms_deform_attn_reference, shapes=levels),
            "fused": functools.partial(ms_deform_attn_fused_reference, shapes=levels),
        }
    )


def _published_fused(value, shapes, starts, reference, offsets, logits) -> Tensor:
    return Published.apply(value, shapes, starts, *locations_and_weights(shapes, reference, offsets, logits))


PUBLISHED = Rival({"unfused": Published.apply, "fused": _published_fused}, float32_only=True)
"""The algorithm of the published CUDA operator, on a GPU only; the fused form computes locations and weights in PyTorch
before."""


def deformops(backend: str) -> Rival:
    """The operator of the package deformops: "triton" or "cuda", or "eager" on a CPU.

    It takes locations in float32 whatever dtype the values have, and has the softmax within.

    Raises:
        ImportError: the package is not installed.
    """
    from deformops.registry import Backend, msda

    call = functools.partial(msda, backend=Backend[backend.upper()])

    def unfused(value, shapes, starts, locations, weights) -> Tensor:
        return call(value, shapes, starts, locations, weights.flatten(3), method="linear")

    def fused(value, shapes, starts, reference, offsets, logits) -> Tensor:
        locations = sampling_locations(shapes, reference, offsets)
        return call(value, shapes, starts, locations, logits.flatten(3), method="softmax")

    return Rival({"unfused": unfused, "fused": fused}, float32_locations=True)
