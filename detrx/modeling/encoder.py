"""Deformable encoder: tokens of all levels attend to points around themselves."""

import copy

from torch import Tensor, nn

from detrx.layers import FFN, MultiScaleDeformableAttention

from .tokens import MultiScaleTokens


class DeformableEncoderLayer(nn.Module):
    """Self-attention and FFN, each with residual, dropout and LayerNorm after it."""

    def __init__(self, self_attn: MultiScaleDeformableAttention, ffn: FFN, embed_dim: int, dropout: float = 0.0):
        super().__init__()
        self.self_attn = self_attn
        self.norm1 = nn.LayerNorm(embed_dim)
        self.ffn = ffn
        self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        for module in (self.self_attn, self.norm1, self.ffn, self.norm2):
            module.reset_parameters()

    def forward(self, memory: MultiScaleTokens, reference: Tensor) -> MultiScaleTokens:
        """`reference` is (B, S, L, 2): where each token looks, on each level."""
        x = memory.tokens
        attended = self.self_attn(
            x + memory.pos, reference, x, memory.spatial_shapes, memory.level_start_index, memory.padding_mask
        )
        x = self.norm1(x + self.dropout(attended))
        return memory.with_tokens(self.norm2(x + self.dropout(self.ffn(x))))


class DeformableEncoder(nn.Module):
    """`num_layers` copies of `layer`, each with its own initialisation."""

    def __init__(self, layer: DeformableEncoderLayer, num_layers: int):
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(num_layers))
        for module in self.layers:
            module.reset_parameters()

    def forward(self, memory: MultiScaleTokens) -> MultiScaleTokens:
        centres, _ = memory.cell_centres()
        reference = memory.per_level(centres.expand(len(memory.tokens), -1, -1))
        for layer in self.layers:
            memory = layer(memory, reference)
        return memory
