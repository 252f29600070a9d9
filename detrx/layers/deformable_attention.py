"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.ops import has_kernel, ms_deform_attn_fused
from detrx.ops.ms_deform_attn_fused import locations_and_weights

from .linear import Linear
from .record import Recorded

# Time to add one channel of a token to a sample, in multiply-adds of a projection; a conservative estimate.
_SAMPLE_COST = 10


@dataclass(frozen=True)
class SamplingInputs:
    """Where one call of `MultiScaleDeformableAttention` samples.

    Attributes:
        reference: (B, Q, L, 2) xy or (B, Q, L, 4) cxcywh, in [0, 1] over each level.
        offsets: (B, Q, M, L, P, 2), as `ms_deform_attn_fused` takes them.
        logits: (B, Q, M, L, P) before the softmax over the L * P points.
        spatial_shapes: (L, 2) height and width of each level.
    """

    reference: Tensor
    offsets: Tensor
    logits: Tensor
    spatial_shapes: Tensor

    def points(self) -> tuple[Tensor, Tensor]:
        """Locations (B, Q, M, L, P, 2), xy in [0, 1] over each level, and weights (B, Q, M, L, P), in float32."""
        return locations_and_weights(
            self.spatial_shapes, self.reference.float(), self.offsets.float(), self.logits.float()
        )


class MultiScaleDeformableAttention(Recorded[SamplingInputs]):
    """Each query samples `num_points` points around its reference on each feature level. Its calls can be recorded.

    Args:
        embed_dim: channels C of queries and memory.
        num_heads, num_levels, num_points: M, L and P of the paper.
    """

    def __init__(self, embed_dim: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__()
        if embed_dim % num_heads:
            raise InvalidInputError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = Linear(embed_dim, 2 * samples)
        self.attention_weights = Linear(embed_dim, samples)
        self.value_proj = Linear(embed_dim, embed_dim)
        self.output_proj = Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform attention over points on one ray per head, with point p at distance p + 1."""
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        ray = torch.stack([angle.cos(), angle.sin()], dim=-1)
        ray = ray / ray.abs().amax(dim=-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = ray[:, None, None, :] * distance[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.weight.zero_()
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).reshape(-1))
            self.attention_weights.weight.zero_()
            self.attention_weights.bias.zero_()
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        tokens: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            query: (B, Q, C), with positions added.
            reference: (B, Q, L, 2) xy or (B, Q, L, 4) cxcywh in [0, 1], per level because padding differs by level.
                Offsets are in pixels of the level for points, in half box sizes over P for boxes. They may be float32
                whatever the dtype of the queries is.
            tokens: (B, S, C), the levels one after the other.
            spatial_shapes: (L, 2) height, width; level_start_index: (L,).
            padding_mask: (B, S) bool, True for padding, whose values are set to zero.

        Returns:
            (B, Q, C)
        """
        if tokens.dtype == torch.float64:
            reference = reference.double()
        if self.record is not None:
            self.record.append(self.sampling(query, reference, spatial_shapes))
        if self._samples_first(query, tokens):
            out = self._sample_then_project(query, reference, tokens, spatial_shapes, level_start_index, padding_mask)
            return self.output_proj(out)
        value = self.value_proj(tokens)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        offsets = self.sampling_offsets(query).unflatten(-1, (self.num_heads, self.num_levels, self.num_points, 2))
        logits = self.attention_weights(query).unflatten(-1, (self.num_heads, -1))
        value = value.unflatten(-1, (self.num_heads, -1))
        out = ms_deform_attn_fused(value, spatial_shapes, level_start_index, reference, offsets, logits)
        return self.output_proj(out)

    def sampling(self, query: Tensor, reference: Tensor, spatial_shapes: Tensor) -> SamplingInputs:
        """Where queries (B, Q, C) sample; arguments as in `forward`."""
        shape = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*shape, 2))
        return SamplingInputs(reference, offsets, self.attention_weights(query).unflatten(-1, shape), spatial_shapes)

    def _samples_first(self, query: Tensor, tokens: Tensor) -> bool:
        """Whether sampling all channels for every head is clearly less work than projecting all tokens.

        Only where this was measured: float32 and float64 on CPUs, with the compiled kernel. Not in traced graphs, which
        must serve any number of queries.
        """
        if (
            tokens.device.type != "cpu"
            or tokens.dtype not in (torch.float32, torch.float64)
            or torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or not isinstance(self.value_proj, nn.Linear)  # quantised, for example: no weight to take
            or not has_kernel("ms_deform_attn_fused", "cpu")
        ):
            return False
        corners = 4 * query.shape[1] * self.num_heads * self.num_levels * self.num_points
        return _SAMPLE_COST * corners < tokens.shape[1] * tokens.shape[2]

    def _sample_then_project(
        self,
        query: Tensor,
        reference: Tensor,
        tokens: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        padding_mask: Tensor | None,
    ) -> Tensor:
        """Project the weighted sum of tokens instead of summing projected tokens -> (B, Q, C).

        Each head becomes a separate query that samples all channels. The bias of the projection is scaled by the total
        weight of the samples on tokens that are not padding.
        """
        batch, queries, channels = query.shape
        ones = tokens.new_ones(batch, tokens.shape[1], 1)
        if padding_mask is not None:
            tokens = tokens.masked_fill(padding_mask[..., None], 0.0)
            ones = ones.masked_fill(padding_mask[..., None], 0.0)
        items = (batch, queries * self.num_heads, 1, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).view(*items, 2)
        logits = self.attention_weights(query).view(items)
        reference = reference.repeat_interleave(self.num_heads, dim=1)

        def sample(values: Tensor) -> Tensor:
            """(B, S, D) -> (M, B * Q, D)"""
            rows = ms_deform_attn_fused(
                values[:, :, None], spatial_shapes, level_start_index, reference, offsets, logits
            )
            return rows.view(batch * queries, self.num_heads, values.shape[2]).transpose(0, 1)

        weight = self.value_proj.weight.unflatten(0, (self.num_heads, -1)).transpose(1, 2)
        bias = self.value_proj.bias.view(self.num_heads, 1, -1)
        out = torch.baddbmm(bias * sample(ones), sample(tokens), weight)
        return out.transpose(0, 1).reshape(batch, queries, channels)
