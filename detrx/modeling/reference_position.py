"""Positions of queries that are computed from their references before every decoder layer."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from detrx.layers import MLP, sine_embedding

from .queries import Queries
from .tokens import MultiScaleTokens


class ReferencePosition(nn.Module):
    """MLP of the sine embedding of the reference box (DINO, arXiv 2203.03605); `position` of a `Decoder`.

    Args:
        embed_dim: C.
        temperature: base of the wavelengths.
        padded_frame: embed references relative to the padded instead of the unpadded image, as the published code does
            in training. Positions then depend on the padding.
    """

    def __init__(self, embed_dim: int, temperature: float = 10000.0, padded_frame: bool = False):
        super().__init__()
        self.temperature = temperature
        self.padded_frame = padded_frame
        self.mlp = MLP(2 * embed_dim, embed_dim, embed_dim, 2)
        for layer in self.mlp.layers:
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, queries: Queries, layer: int, memory: MultiScaleTokens) -> Queries:
        reference = queries.reference
        if self.padded_frame and memory.valid_ratios is not None:
            reference = reference * memory.valid_ratios[:, :1].repeat(1, 1, 2)
        return replace(queries, pos=self.mlp(self.embed(reference)))

    def embed(self, boxes: Tensor) -> Tensor:
        """(B, N, 4) cxcywh -> (B, N, 2 * C), a quarter each for cy, cx, w and h."""
        cx, cy, w, h = boxes.unbind(-1)
        num_feats = self.mlp.layers[0].in_features // 4
        return sine_embedding(torch.stack([cy, cx, w, h], dim=-1), num_feats, self.temperature)
