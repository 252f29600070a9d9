"""Feature maps of several levels as one token sequence, with the geometry that attention needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.layers import cast_like, to_device


@dataclass(frozen=True)
class MultiScaleTokens:
    """Concatenated tokens of all levels, row-major within a level; S = sum of all H_l * W_l.

    Attributes:
        tokens: (B, S, C).
        pos: (B, S, C) position embedding, including the level embedding.
        padding_mask: (B, S) bool, True for padding; None if no image is padded.
        shapes: (H_l, W_l) of each level.
        spatial_shapes, level_start_index: shapes and start of each level, as int64 tensors (L, 2) and (L,).
        valid_ratios: (B, L, 2) unpadded fraction (x, y) of each level; None if no image is padded.
        fewest: number of unpadded tokens of the image with the fewest, if the maps were computed image by image, and
            results must not depend on the batch; None if the backbone saw the padding.
    """

    tokens: Tensor
    pos: Tensor
    padding_mask: Tensor | None
    shapes: tuple[tuple[int, int], ...]
    spatial_shapes: Tensor
    level_start_index: Tensor
    valid_ratios: Tensor | None
    fewest: int | None = None

    def with_tokens(self, tokens: Tensor) -> MultiScaleTokens:
        return replace(self, tokens=tokens)

    def blocked_keys(self) -> Tensor | None:
        """(B, 1, 1, S) bool, True for padding, which no query may attend to; None if no image is padded."""
        return None if self.padding_mask is None else self.padding_mask[:, None, None]

    def maps(self) -> list[tuple[Tensor, Tensor | None]]:
        """The tokens (B, C, H_l, W_l) and the padding mask (B, H_l, W_l) of each level; None without padding."""
        areas = [h * w for h, w in self.shapes]
        tokens = [each.transpose(1, 2) for each in self.tokens.split(areas, dim=1)]
        masks = [None] * len(areas) if self.padding_mask is None else self.padding_mask.split(areas, dim=1)
        return [
            (x.unflatten(2, shape), None if mask is None else mask.unflatten(1, shape))
            for x, mask, shape in zip(tokens, masks, self.shapes, strict=True)
        ]

    def cell_centres(self) -> tuple[Tensor, Tensor]:
        """Centres (1 or B, S, 2) of all cells as xy in [0, 1] of the *unpadded* image, and the level (S,) of each."""
        device = self.tokens.device
        sizes = self.spatial_shapes.flip(1).to(torch.float32)
        centres, levels = [], []
        for level, (h, w) in enumerate(self.shapes):
            y = torch.arange(h, dtype=torch.float32, device=device) + 0.5
            x = torch.arange(w, dtype=torch.float32, device=device) + 0.5
            grid = torch.stack([x[None, :].expand(h, w), y[:, None].expand(h, w)], dim=-1).view(1, -1, 2)
            size = sizes[level]
            if self.valid_ratios is not None:
                size = size * self.valid_ratios[:, level, None]
            centres.append(grid / size)
            levels.append(torch.full((h * w,), level, device=device))
        return torch.cat(centres, dim=1), torch.cat(levels)

    def per_level(self, reference: Tensor) -> Tensor:
        """References (B, Q, 2 or 4) relative to the unpadded image -> (B, Q, L, 2 or 4), relative to padded levels."""
        if self.valid_ratios is None:
            return reference[:, :, None].expand(-1, -1, len(self.shapes), -1)
        ratios = self.valid_ratios
        if reference.shape[-1] == 4:
            ratios = torch.cat([ratios, ratios], dim=-1)
        return reference[:, :, None] * ratios[:, None]


class Tokenizer(nn.Module):
    """Flattens feature maps and adds their position and level embeddings.

    Args:
        position_embedding: maps a padding mask (B, H, W) to (B, C, H, W).
        embed_dim: number C of channels.
        num_levels: number L of feature maps.
        level_embedding: add a learned vector per level to the position embedding.
    """

    def __init__(self, position_embedding: nn.Module, embed_dim: int, num_levels: int, level_embedding: bool = True):
        super().__init__()
        self.position_embedding = position_embedding
        self.num_levels = num_levels
        if level_embedding:
            self.level_embed = nn.Parameter(torch.empty(num_levels, embed_dim))
            nn.init.normal_(self.level_embed)
        else:
            self.register_parameter("level_embed", None)

    def forward(
        self, features: Sequence[Tensor], masks: Sequence[Tensor] | None, fewest: int | None = None
    ) -> MultiScaleTokens:
        """
        Args:
            features: L tensors (B, C, H_l, W_l).
            masks: L tensors (B, H_l, W_l) bool, True for padding; None if no image is padded.
            fewest: see `MultiScaleTokens`.
        """
        if len(features) != self.num_levels:
            raise InvalidInputError(f"the neck gives {len(features)} levels, but num_levels is {self.num_levels}")
        device = features[0].device
        positions = []
        for level, feature in enumerate(features):
            unpadded = torch.zeros(1, *feature.shape[-2:], dtype=torch.bool, device=device)
            position = self.position_embedding(unpadded if masks is None else masks[level])
            position = position.flatten(2).transpose(1, 2)
            if self.level_embed is not None:
                position = position + self.level_embed[level]
            positions.append(cast_like(position, feature).expand(feature.shape[0], -1, -1))
        shapes = tuple((f.shape[-2], f.shape[-1]) for f in features)
        areas = [h * w for h, w in shapes]
        starts = [sum(areas[:level]) for level in range(len(areas))]
        return MultiScaleTokens(
            tokens=torch.cat([f.flatten(2).transpose(1, 2) for f in features], dim=1),
            pos=torch.cat(positions, dim=1),
            padding_mask=None if masks is None else torch.cat([mask.flatten(1) for mask in masks], dim=1),
            shapes=shapes,
            spatial_shapes=to_device(torch.tensor(shapes), device),
            level_start_index=to_device(torch.tensor(starts), device),
            valid_ratios=None if masks is None else torch.stack([unpadded_fraction(m) for m in masks], dim=1),
            fewest=fewest,
        )


def unpadded_fraction(mask: Tensor) -> Tensor:
    """(B, H, W) bool, True for padding on the right and bottom -> (B, 2) unpadded fraction of width and height."""
    return torch.stack([(~mask[:, 0]).float().mean(-1), (~mask[:, :, 0]).float().mean(-1)], dim=-1)


def masks_of_levels(padding_mask: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
    """Resize the padding mask (B, H, W) of the images to each feature map (B, C, H_l, W_l), by nearest neighbour."""
    return [F.interpolate(padding_mask[None].float(), size=f.shape[-2:])[0].bool() for f in features]


def pad_features(images: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Batch feature maps of images of different sizes.

    Args:
        images: L maps (C, H_l, W_l) for each image.

    Returns:
        L tensors (B, C, H_l, W_l), where smaller maps are padded with zeros on the right and bottom, and L masks
        (B, H_l, W_l) bool, True for padding.
    """
    features, masks = [], []
    for maps in zip(*images, strict=True):
        height, width = max(m.shape[-2] for m in maps), max(m.shape[-1] for m in maps)
        feature = maps[0].new_zeros(len(maps), maps[0].shape[0], height, width)
        mask = torch.ones(len(maps), height, width, dtype=torch.bool, device=feature.device)
        for index, each in enumerate(maps):
            feature[index, :, : each.shape[-2], : each.shape[-1]] = each
            mask[index, : each.shape[-2], : each.shape[-1]] = False
        features.append(feature)
        masks.append(mask)
    return features, masks
