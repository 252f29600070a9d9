"""Positions of queries, computed from their references before every decoder layer."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from detrx.layers import MLP, cast_like, reset_linears, sine_embedding

from .queries import Queries
from .tokens import MultiScaleTokens


class ContentScale(nn.Module):
    """Scales an embedding of places by an MLP of the queries' content; not in the first layer, which has no content
    yet."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.mlp = MLP(embed_dim, embed_dim, embed_dim, 2)
        reset_linears(self)

    def forward(self, embedding: Tensor, content: Tensor, layer: int) -> Tensor:
        """Embedding and content, both (B, N, C) -> (B, N, C); `layer` is the index of the decoder layer."""
        return embedding * self.mlp(content) if layer else embedding


class ReferencePosition(nn.Module):
    """MLP of the sine embedding of the reference box (DINO, arXiv 2203.03605); the `position` of a `Decoder`.

    With `scale_by_content`, this is the position of DAB-Deformable-DETR (arXiv 2201.12329).

    Args:
        embed_dim: number C of channels.
        temperature: base of the wavelengths.
        padded_frame: embed references relative to the padded image instead of the unpadded one, as the published code
            does in training. Positions then depend on the padding.
        scale_by_content: scale positions by an MLP of the queries' content, but not before the first layer.
    """

    def __init__(
        self,
        embed_dim: int,
        temperature: float = 10000.0,
        padded_frame: bool = False,
        scale_by_content: bool = False,
    ):
        super().__init__()
        self.temperature = temperature
        self.padded_frame = padded_frame
        self.mlp = MLP(2 * embed_dim, embed_dim, embed_dim, 2)
        reset_linears(self)
        self.scale = ContentScale(embed_dim) if scale_by_content else None

    def forward(self, queries: Queries, layer: int, memory: MultiScaleTokens) -> Queries:
        reference = queries.given("reference")
        if self.padded_frame and memory.valid_ratios is not None:
            reference = reference * memory.valid_ratios[:, :1].repeat(1, 1, 2)
        pos = self.mlp(cast_like(self.embed(reference), queries.content))
        return replace(queries, pos=pos if self.scale is None else self.scale(pos, queries.content, layer))

    def embed(self, boxes: Tensor) -> Tensor:
        """(B, N, 4) cxcywh -> (B, N, 2 * C), one quarter each for cy, cx, w and h."""
        cx, cy, w, h = boxes.unbind(-1)
        num_feats = self.mlp.layers[0].in_features // 4
        return sine_embedding(torch.stack([cy, cx, w, h], dim=-1), num_feats, self.temperature)


class ConditionalPosition(nn.Module):
    """Sine embedding of the reference point, scaled by content (Conditional DETR, arXiv 2108.06152)."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.num_feats = embed_dim // 2
        self.scale = ContentScale(embed_dim)

    def forward(self, queries: Queries, layer: int, memory: MultiScaleTokens) -> Queries:
        """The queries with a new `sine`."""
        sine = cast_like(sine_embedding(queries.given("reference").flip(-1), self.num_feats), queries.content)
        return replace(queries, sine=self.scale(sine, queries.content, layer))


class AnchorPosition(ReferencePosition):
    """Positions of anchor boxes for dense attention (DAB-DETR, arXiv 2201.12329).

    Cross-attention receives the sine embedding of the centre, scaled by content. Its y half is also scaled by h' / h
    and its x half by w' / w, where (w, h) is the size of the box and (w', h') is predicted from content, so that the
    extent of attention follows the size of the box.
    """

    def __init__(self, embed_dim: int, temperature: float = 10000.0):
        super().__init__(embed_dim, temperature, scale_by_content=True)
        self.size = MLP(embed_dim, embed_dim, 2, 2)
        reset_linears(self.size)

    def forward(self, queries: Queries, layer: int, memory: MultiScaleTokens) -> Queries:
        """The queries with a new `pos` and `sine`."""
        reference = queries.given("reference")
        embedding = self.embed(reference)
        centre, _ = embedding.chunk(2, dim=-1)
        assert self.scale is not None
        sine = self.scale(centre, queries.content, layer).unflatten(-1, (2, -1))
        ratio = self.size(queries.content).sigmoid() / reference[..., 2:]
        sine = (sine * ratio.flip(-1)[..., None]).flatten(-2)
        pos = self.mlp(cast_like(embedding, queries.content))
        return replace(queries, pos=pos, sine=cast_like(sine, queries.content))
