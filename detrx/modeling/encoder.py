"""Encoders: self-attention between the tokens of an image."""

import copy
from abc import ABC, abstractmethod
from typing import TypeVar

from torch import Tensor, nn

from detrx.layers import FFN, MultiheadAttention, MultiScaleDeformableAttention, reset_linears, run_layer
from detrx.layers.module_list import TypedModuleList

from .tokens import MultiScaleTokens


class EncoderLayer(nn.Module, ABC):
    """Self-attention and FFN, each followed by dropout, residual and LayerNorm."""

    self_attn: MultiScaleDeformableAttention | MultiheadAttention

    def __init__(
        self,
        self_attn: MultiScaleDeformableAttention | MultiheadAttention,
        ffn: FFN,
        embed_dim: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.self_attn = self_attn
        self.norm1 = nn.LayerNorm(embed_dim)
        self.ffn = ffn
        self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        self.self_attn.reset_parameters()
        self.norm1.reset_parameters()
        self.ffn.reset_parameters()
        self.norm2.reset_parameters()

    @abstractmethod
    def attend(self, memory: MultiScaleTokens, where: Tensor) -> Tensor:
        """Self-attention of the tokens -> (B, S, C); `where` are their places, in the form the subclass needs."""

    def forward(self, memory: MultiScaleTokens, where: Tensor) -> MultiScaleTokens:
        x = self.norm1(memory.tokens + self.dropout(self.attend(memory, where)))
        return memory.with_tokens(self.norm2(x + self.dropout(self.feed_forward(x, memory))))

    def feed_forward(self, x: Tensor, memory: MultiScaleTokens) -> Tensor:
        """(B, S, C) -> (B, S, C); `memory` has the geometry of the tokens `x`."""
        return self.ffn(x)


Layer = TypeVar("Layer", bound=EncoderLayer)


class DeformableEncoderLayer(EncoderLayer):
    """Each token samples points around itself (Deformable DETR, arXiv 2010.04159)."""

    self_attn: MultiScaleDeformableAttention

    def __init__(self, self_attn: MultiScaleDeformableAttention, ffn: FFN, embed_dim: int, dropout: float = 0.0):
        super().__init__(self_attn, ffn, embed_dim, dropout)

    def attend(self, memory: MultiScaleTokens, where: Tensor) -> Tensor:
        """`where` is (B, S, L, 2): the reference point of each token, on each level."""
        return self.self_attn(
            memory.tokens + memory.pos,
            where,
            memory.tokens,
            memory.spatial_shapes,
            memory.level_start_index,
            memory.padding_mask,
        )


class TransformerEncoderLayer(EncoderLayer):
    """Each token attends to all tokens except padding (DETR, arXiv 2005.12872)."""

    self_attn: MultiheadAttention

    def __init__(self, self_attn: MultiheadAttention, ffn: FFN, embed_dim: int, dropout: float = 0.0):
        super().__init__(self_attn, ffn, embed_dim, dropout)

    def attend(self, memory: MultiScaleTokens, where: Tensor) -> Tensor:
        """`where` is (B, S, C): the position embedding of each token."""
        attended = self.self_attn.attend(*self.self_attn.project(memory.tokens, where), memory.blocked_keys())
        return self.self_attn.out_proj(attended)


class DeformableEncoder(nn.Module):
    """`num_layers` copies of `layer`, each with its own initialisation.

    Args:
        activation_checkpointing: recompute the activations inside of layers in the backward pass instead of keeping
            them.
    """

    def __init__(self, layer: DeformableEncoderLayer, num_layers: int, activation_checkpointing: bool = False):
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.layers = copies(layer, num_layers)

    def forward(self, memory: MultiScaleTokens) -> MultiScaleTokens:
        centres, _ = memory.cell_centres()
        reference = memory.per_level(centres.expand(memory.tokens.shape[0], -1, -1))
        for layer in self.layers:
            memory = run_layer(layer, memory, reference, recompute=self.activation_checkpointing)
        return memory


class TransformerEncoder(nn.Module):
    """`num_layers` copies of `layer`, each with its own initialisation.

    Args:
        pos_scale: maps tokens (B, S, C) to factors (B, S, C) of their position embedding, before every layer; None: all
            layers use the same positions.
        activation_checkpointing: recompute the activations inside of layers in the backward pass instead of keeping
            them.
    """

    def __init__(
        self,
        layer: TransformerEncoderLayer,
        num_layers: int,
        pos_scale: nn.Module | None = None,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.layers = copies(layer, num_layers)
        self.pos_scale = pos_scale
        if pos_scale is not None:
            reset_linears(pos_scale)

    def forward(self, memory: MultiScaleTokens) -> MultiScaleTokens:
        for layer in self.layers:
            pos = memory.pos if self.pos_scale is None else memory.pos * self.pos_scale(memory.tokens)
            memory = run_layer(layer, memory, pos, recompute=self.activation_checkpointing)
        return memory


def copies(layer: Layer, count: int) -> "TypedModuleList[Layer]":
    """`count` copies of a layer, each with its own initialisation."""
    layers = TypedModuleList(copy.deepcopy(layer) for _ in range(count))
    for each in layers:
        each.reset_parameters()
    return layers
