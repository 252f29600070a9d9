"""Cross-attentions of the decoder, from the queries to the encoded tokens."""

from dataclasses import replace
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.layers import (
    Attention,
    AttentionInputs,
    MultiheadAttention,
    MultiScaleDeformableAttention,
    reset_linears,
)

from .queries import Queries
from .tokens import MultiScaleTokens

MAP_PARTS = ("spatial", "content", "full")
"""What a map of dense cross-attention can be made from: places alone, contents alone, or both, as in the model."""


def check_part(part: str) -> None:
    """Raise ValueError if there is no such part of an attention map."""
    if part not in MAP_PARTS:
        raise InvalidInputError(f"part of an attention map must be one of {MAP_PARTS}, got {part!r}")


class DeformableCrossAttention(MultiScaleDeformableAttention):
    """Each query samples points around its reference (Deformable DETR, arXiv 2010.04159)."""

    def forward(self, queries: Queries, memory: MultiScaleTokens) -> Tensor:  # type: ignore[override]  # as a decoder calls it
        """-> (B, N, C)"""
        return super().forward(
            queries.content + queries.given("pos"),
            memory.per_level(queries.given("reference")),
            memory.tokens,
            memory.spatial_shapes,
            memory.level_start_index,
            memory.padding_mask,
        )


class DenseCrossAttention(MultiheadAttention):
    """Each query attends to all tokens; positions are added to contents (DETR, arXiv 2005.12872).

    Args:
        mask_padding: do not attend to padding.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0, mask_padding: bool = True):
        super().__init__(embed_dim, num_heads, dropout)
        self.mask_padding = mask_padding

    def forward(self, queries: Queries, memory: MultiScaleTokens) -> Tensor:
        """-> (B, N, C)"""
        inputs = (queries.content + queries.given("pos"), memory.tokens + memory.pos, memory.tokens)
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (self.split_heads(F.linear(*each)) for each in zip(inputs, weights, biases, strict=True))
        return self.out_proj(self.attend(q, k, v, memory.blocked_keys() if self.mask_padding else None))

    def part_of(self, inputs: AttentionInputs, memory: MultiScaleTokens, part: str) -> AttentionInputs:
        """The inputs of a call with keys made from the tokens' positions ("spatial") or contents ("content") alone, or
        from both ("full")."""
        check_part(part)
        if part == "full":
            return inputs
        key = memory.pos if part == "spatial" else memory.tokens
        weight, bias = self.in_proj_weight.chunk(3)[1], self.in_proj_bias.chunk(3)[1]
        return replace(inputs, k=self.split_heads(F.linear(key, weight, bias)))


class ConditionalCrossAttention(Attention):
    """Each query attends to all tokens, by content and by place (Conditional DETR, arXiv 2108.06152).

    Each head compares the contents of query and token and, in separate channels, the sine embeddings of their places.

    Args:
        add_pos: also add the projected positions of queries and tokens to their contents. This is for the first layer,
            where queries have no content yet.
        mask_padding: do not attend to padding. The implementation in detrex does attend to it.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, add_pos: bool = False, mask_padding: bool = True
    ):
        super().__init__(embed_dim, num_heads, dropout)
        self.mask_padding = mask_padding
        self.query_content_proj = nn.Linear(embed_dim, embed_dim)
        self.query_sine_proj = nn.Linear(embed_dim, embed_dim)
        self.query_pos_proj = nn.Linear(embed_dim, embed_dim) if add_pos else None
        self.key_content_proj = nn.Linear(embed_dim, embed_dim)
        self.key_pos_proj = nn.Linear(embed_dim, embed_dim)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        reset_linears(self)

    def forward(self, queries: Queries, memory: MultiScaleTokens) -> Tensor:
        """-> (B, N, C)"""
        query, query_place = self.query_content_proj(queries.content), self.query_sine_proj(queries.given("sine"))
        key, key_place = self.key_content_proj(memory.tokens), self.key_pos_proj(memory.pos)
        if self.query_pos_proj is not None:
            query, key = query + self.query_pos_proj(queries.given("pos")), key + key_place
        q = torch.cat([self.split_heads(query), self.split_heads(query_place)], dim=-1)
        k = torch.cat([self.split_heads(key), self.split_heads(key_place)], dim=-1)
        v = self.split_heads(self.value_proj(memory.tokens))
        return self.out_proj(self.attend(q, k, v, memory.blocked_keys() if self.mask_padding else None))

    def part_of(self, inputs: AttentionInputs, memory: MultiScaleTokens, part: str) -> AttentionInputs:
        """The inputs of a call that compare places ("spatial": the spatial attention of the paper) or contents
        ("content") alone, on the scale that they have in the sum of both ("full")."""
        check_part(part)
        if part == "full":
            return inputs
        content, place = inputs.q.chunk(2, dim=-1)
        kept = (content, torch.zeros_like(place)) if part == "content" else (torch.zeros_like(content), place)
        return replace(inputs, q=torch.cat(kept, dim=-1))


CrossAttention: TypeAlias = DeformableCrossAttention | DenseCrossAttention | ConditionalCrossAttention
"""What a decoder layer has: `Queries` of N queries and the memory -> (B, N, C)."""
