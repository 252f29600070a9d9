"""Sine position embeddings of feature maps and of reference boxes."""

import math

import torch
from torch import Tensor, nn


def _wavelengths(num_feats: int, temperature: float, device: torch.device) -> Tensor:
    index = torch.arange(num_feats, dtype=torch.float32, device=device)
    return temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / num_feats)


def sine_embedding(coords: Tensor, num_feats: int, temperature: float = 10000.0) -> Tensor:
    """Interleaved sine and cosine features of each coordinate.

    Args:
        coords: (..., n) normalised coordinates; 1 is a full turn of the first feature.
        num_feats: features per coordinate.

    Returns:
        (..., n * num_feats), in the order of the coordinates.
    """
    phase = coords[..., None] * (2 * math.pi) / _wavelengths(num_feats, temperature, coords.device)
    return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], dim=-1).flatten(-3)


class SinePositionEmbedding(nn.Module):
    """2-d sine embedding of the unpadded part of a feature map: the first half of the channels for y, the second for x.

    Args:
        num_feats: channels per axis, half the embedding width.
        temperature: base of the wavelengths.
        offset: added to the 1-based row and column numbers before normalisation; -0.5 gives positions of cell centres.
    """

    def __init__(self, num_feats: int, temperature: float = 10000.0, offset: float = -0.5, eps: float = 1e-6):
        super().__init__()
        self.num_feats, self.temperature, self.offset, self.eps = num_feats, temperature, offset, eps

    def forward(self, mask: Tensor) -> Tensor:
        """(B, H, W) bool, True for padding -> (B, 2 * num_feats, H, W)."""
        valid = (~mask).float()
        y, x = valid.cumsum(1), valid.cumsum(2)
        y = (y + self.offset) / (y[:, -1:, :] + self.eps)
        x = (x + self.offset) / (x[:, :, -1:] + self.eps)
        embedding = sine_embedding(torch.stack([y, x], dim=-1), self.num_feats, self.temperature)
        return embedding.permute(0, 3, 1, 2)
