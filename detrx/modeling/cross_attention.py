"""Cross-attentions of the decoder: what the queries read from the memory."""

from torch import Tensor

from detrx.layers import MultiScaleDeformableAttention

from .queries import Queries
from .tokens import MultiScaleTokens


class DeformableCrossAttention(MultiScaleDeformableAttention):
    """Every query samples points around its reference (Deformable DETR, arXiv 2010.04159)."""

    def forward(self, queries: Queries, memory: MultiScaleTokens) -> Tensor:
        """-> (B, N, C)"""
        return super().forward(
            queries.content + queries.pos,
            memory.per_level(queries.reference),
            memory.tokens,
            memory.spatial_shapes,
            memory.level_start_index,
            memory.padding_mask,
        )
