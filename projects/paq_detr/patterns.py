"""Pattern queries: the content of a query is a mixture of shared patterns, with weights predicted from the image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.layers import cast_like
from detrx.modeling import DetectionTransformer, Method, MultiScaleTokens, Predictions, QueryContent, Step


class WeightGenerator(nn.Module):
    """Predicts the weights of the patterns for every query from the levels of the encoder.

    Every level passes a 1x1 convolution, a dilated 3x3 convolution and ReLU; coarse levels are upsampled and added to
    finer ones. Channel attention, spatial attention (both as in CBAM, arXiv 1807.06521) and the mean over the map give
    one vector, which two linear layers, with LayerNorm and ReLU between them, map to N x m logits. Padding is ignored
    everywhere, so that it does not change the weights of an image.

    Args:
        num_queries: number N of queries.
        num_patterns: number m of patterns.
        embed_dim: number of channels of the encoder.
        num_levels: number of levels of the encoder.
        channels: number of channels of the convolutions.
        hidden_dim: number of hidden units between the two linear layers.
        dilation: dilation of the 3x3 convolutions.
        reduction: channel attention has `channels / reduction` hidden units.
        kernel_size: kernel size of the spatial attention.
        spread: initial standard deviation of the logits' biases. If it is small, the softmax gives every query nearly
            the same mixture of all patterns, whose norm is about 1 / sqrt(m) of a pattern's.
    """

    def __init__(
        self,
        num_queries: int,
        num_patterns: int,
        embed_dim: int,
        num_levels: int,
        channels: int = 64,
        hidden_dim: int = 32,
        dilation: int = 2,
        reduction: int = 4,
        kernel_size: int = 7,
        spread: float = 3.0,
    ):
        super().__init__()
        self.shape = (num_queries, num_patterns)
        self.reduce = nn.ModuleList(nn.Conv2d(embed_dim, channels, 1) for _ in range(num_levels))
        self.dilate = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation) for _ in range(num_levels)
        )
        self.channel_attention = nn.Sequential(
            nn.Linear(channels, max(1, channels // reduction)),
            nn.ReLU(),
            nn.Linear(max(1, channels // reduction), channels),
        )
        self.spatial_attention = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, num_queries * num_patterns),
        )
        nn.init.normal_(self.mlp[-1].bias, std=spread)

    def forward(self, memory: MultiScaleTokens) -> Tensor:
        """Weights (B, N, m) float32, non-negative, with sum 1 over the patterns."""
        logits = self.mlp(self.describe(memory)).float()
        return logits.unflatten(1, self.shape).softmax(-1)

    def describe(self, memory: MultiScaleTokens) -> Tensor:
        """Vectors (B, channels) that describe the images."""
        if len(memory.shapes) != len(self.reduce):
            raise InvalidInputError(
                f"num_levels is {len(self.reduce)}, but the encoder has {len(memory.shapes)} levels"
            )
        fused = None
        for (tokens, padding), reduce, dilate in reversed(
            list(zip(memory.maps(), self.reduce, self.dilate, strict=True))
        ):
            x = dilate(without(reduce(tokens), padding)).relu()
            fused = x if fused is None else x + enlarge(fused, x.shape[-2:])
        # After ReLU, no value is below zero, so zeros in the padding do not change the maximum.
        x = without(fused, padding).float()
        area = float(x.shape[-2] * x.shape[-1]) if padding is None else (~padding).sum((1, 2))[:, None].float()
        pooled = cast_like(torch.stack([x.sum((2, 3)) / area, x.amax((2, 3))]), self.spatial_attention.weight)
        x = x * self.channel_attention(pooled).sum(0).sigmoid()[..., None, None]
        pooled = cast_like(torch.stack([x.mean(1), x.amax(1)], dim=1), self.spatial_attention.weight)
        described = (x * self.spatial_attention(pooled).sigmoid()).sum((2, 3)) / area
        return cast_like(described, self.spatial_attention.weight)


def without(x: Tensor, padding: Tensor | None) -> Tensor:
    """Set `x` (B, C, H, W) to zero in the padding (B, H, W)."""
    return x if padding is None else x.masked_fill(padding[:, None], 0.0)


def enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample (B, C, h, w) by the smallest integer factors that cover `size`, repeating cells, and crop to `size`.

    Cell i of the larger map is cell i // factor of the smaller one for any padding, which would not hold for
    interpolation to `size`.
    """
    height, width = size
    factors = [-(-large // small) for large, small in zip(size, x.shape[-2:], strict=True)]
    return F.interpolate(x, scale_factor=[float(f) for f in factors])[..., :height, :width]


class PatternContent(QueryContent):
    """Content of queries as mixtures of patterns, q_i = sum_j w_ij p_j.

    Use it as `content` of any query source, which still provides positions and references.

    Args:
        num_queries: number n of queries of the query source.
        embed_dim: number C of channels of encoder and queries.
        num_levels: number of levels of the encoder.
        num_patterns: number m of patterns.
        channels, hidden_dim, dilation, spread: arguments of the `WeightGenerator`.
    """

    def __init__(
        self,
        num_queries: int,
        embed_dim: int,
        num_levels: int,
        num_patterns: int = 150,
        channels: int = 64,
        hidden_dim: int = 32,
        dilation: int = 2,
        spread: float = 3.0,
    ):
        super().__init__()
        if num_patterns < 2:
            raise InvalidInputError(f"num_patterns must be at least 2, got {num_patterns}")
        self.num_queries = num_queries
        self.patterns = nn.Parameter(torch.empty(num_patterns, embed_dim))
        nn.init.normal_(self.patterns)
        self.generator = WeightGenerator(
            num_queries, num_patterns, embed_dim, num_levels, channels, hidden_dim, dilation, spread=spread
        )

    def rows_per_query(self) -> dict[str, int]:
        last = len(self.generator.mlp) - 1
        return dict.fromkeys((f"generator.mlp.{last}.weight", f"generator.mlp.{last}.bias"), len(self.patterns))

    def forward(self, memory: MultiScaleTokens) -> Tensor:
        """Content (B, n, C) of the queries."""
        return cast_like(self.generator(memory), self.patterns) @ self.patterns


def diversity_loss(patterns: Tensor) -> Tensor:
    """Mean |cosine| over all pairs of different patterns (m, C), computed in float32 even under autocast."""
    unit = F.normalize(patterns.float(), dim=1)
    count = len(unit)
    first, second = torch.triu_indices(count, count, offset=1, device=unit.device)
    with torch.autocast(unit.device.type, enabled=False):
        return (unit @ unit.T)[first, second].abs().mean()


class PatternDiversity(Method):
    """Adds the `diversity_loss` of the patterns of a detector with `PatternContent`.

    Args:
        weight: weight of the loss (beta).
    """

    def __init__(self, weight: float = 0.2):
        super().__init__()
        if weight < 0:
            raise InvalidInputError(f"weight must not be negative, got {weight}")
        self.weight = weight

    def attach(self, model: DetectionTransformer) -> None:
        content = getattr(model.query_source, "content", None)
        if not isinstance(content, PatternContent):
            found = content if isinstance(content, str) else type(content).__name__
            raise InvalidInputError(
                f"PatternDiversity needs a query source whose `content` is a PatternContent; this "
                f"{type(model.query_source).__name__} has {found}"
            )

    def extra_losses(self, step: Step, predictions: Mapping[str, Predictions]) -> dict[str, Tensor]:
        return {"loss_diversity": self.weight * diversity_loss(step.model.query_source.content.patterns)}
