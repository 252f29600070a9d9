"""Distances between the encoded tokens of student and teacher: FitNet, DeFeat, MGD and FGD (Table 4 of the paper)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.layers import cast_like, cxcywh_to_xyxy
from detrx.modeling import MultiScaleTokens, Targets


def covered_cells(tokens: MultiScaleTokens, targets: Targets) -> list[Tensor]:
    """The cells of each level that each ground-truth box touches: (B, G, H_l, W_l) bool for G boxes."""
    x1, y1, x2, y2 = cxcywh_to_xyxy(targets.boxes).unbind(-1)
    levels = []
    for level, (height, width) in enumerate(tokens.shapes):
        ratio = 1.0 if tokens.valid_ratios is None else tokens.valid_ratios[:, level, None]
        sides = []
        for axis, (first, last, count) in enumerate(((x1, x2, width), (y1, y2, height))):
            cells = count * (ratio if isinstance(ratio, float) else ratio[..., axis])  # of the unpadded image
            cell = torch.arange(count, device=first.device)
            sides.append((cell + 1 > (first * cells)[..., None]) & (cell < (last * cells)[..., None]))
        columns, rows = sides
        levels.append(rows[..., :, None] & columns[..., None, :] & targets.valid[..., None, None])
    return levels


class FeatureLoss(nn.Module, ABC):
    """Base of the distances between the encoder's outputs. Padding is ignored.

    Args:
        embed_dim: channels C of the student's tokens.
        teacher_dim: channels D of the teacher's tokens (default: C).
        num_levels: number of levels of both.

    Attributes:
        average_levels: take the mean over the levels instead of their sum.
    """

    average_levels: ClassVar[bool] = False

    def __init__(self, embed_dim: int, teacher_dim: int | None = None, num_levels: int = 1):
        super().__init__()
        self.embed_dim, self.teacher_dim = embed_dim, embed_dim if teacher_dim is None else teacher_dim
        self.num_levels = num_levels

    def for_levels(self, make: Callable[[], nn.Module]) -> nn.ModuleList:
        """A module for each level."""
        return nn.ModuleList([make() for _ in range(self.num_levels)])

    def alignment(self) -> nn.ModuleList:
        """For each level a 1 x 1 convolution to the teacher's channels, where these differ from the student's."""
        if self.embed_dim == self.teacher_dim:
            return self.for_levels(nn.Identity)
        return self.for_levels(lambda: nn.Conv2d(self.embed_dim, self.teacher_dim, 1))

    def forward(self, student: MultiScaleTokens, teacher: MultiScaleTokens, targets: Targets) -> dict[str, Tensor]:
        """
        Args:
            student, teacher: encoded tokens of the same images.
            targets: ground truth of the images.

        Returns:
            weighted scalar losses by name.

        Raises:
            ValueError: the token grids or channels are others than expected.
        """
        self.check(student, teacher)
        totals: dict[str, Tensor] = {}
        levels = zip(student.maps(), teacher.maps(), covered_cells(student, targets), strict=True)
        for level, ((own, padding), (other, _), boxes) in enumerate(levels):
            shape = (own.shape[0], 1, *own.shape[2:])
            keep = torch.ones(shape, device=own.device) if padding is None else (~padding[:, None]).float()
            for name, value in self.of_level(level, own, other.float(), keep, boxes).items():
                totals[name] = totals[name] + value if name in totals else value
        factor = 1 / len(student.shapes) if self.average_levels else 1.0
        return {f"loss_distill_{name}": factor * value for name, value in totals.items()}

    @abstractmethod
    def of_level(self, level: int, own: Tensor, other: Tensor, keep: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Weighted losses of a level by name.

        Args:
            own, other: maps (B, C, H, W) of the student and (B, D, H, W) of the teacher.
            keep: (B, 1, H, W) float, 0 for padding, otherwise 1.
            boxes: (B, G, H, W) bool, the cells that each ground-truth box touches.
        """

    def check(self, student: MultiScaleTokens, teacher: MultiScaleTokens) -> None:
        """Check that the encoded tokens of student and teacher can be compared.

        Raises:
            ValueError: their grids, levels or channels are not those that the loss was made for.
        """
        kind = type(self).__name__
        if student.shapes != teacher.shapes:
            raise InvalidInputError(
                f"{kind}: the student has token grids of the sizes {list(student.shapes)}, the teacher of "
                f"{list(teacher.shapes)}: use backbones of the same stride and the same levels"
            )
        if len(student.shapes) != self.num_levels:
            raise InvalidInputError(
                f"{kind}: num_levels is {self.num_levels}, but the encoder has {len(student.shapes)} levels"
            )
        found = (student.tokens.shape[-1], teacher.tokens.shape[-1])
        if found != (self.embed_dim, self.teacher_dim):
            raise InvalidInputError(
                f"{kind}: the student's tokens have {found[0]} channels and the teacher's {found[1]}, expected "
                f"embed_dim={self.embed_dim} and teacher_dim={self.teacher_dim}"
            )


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values (B, C, H, W) over channels and the places of the mask (B, 1, H, W), 0 if there are none."""
    return (values * mask).sum() / (values.shape[1] * mask.sum()).clamp(min=1)


class FitNet(FeatureLoss):
    """Mean squared difference after a 1 x 1 convolution of the student's tokens (arXiv 1412.6550).

    Args:
        weight: weight of the loss.
    """

    average_levels = True

    def __init__(self, embed_dim: int, teacher_dim: int | None = None, num_levels: int = 1, weight: float = 1.0):
        super().__init__(embed_dim, teacher_dim, num_levels)
        self.weight = weight
        self.adapt = self.for_levels(lambda: nn.Conv2d(self.embed_dim, self.teacher_dim, 1))

    def of_level(self, level: int, own: Tensor, other: Tensor, keep: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        difference = (self.adapt[level](own).float() - other).square()
        return {"fitnet": self.weight * mean_where(difference, keep)}


class DeFeat(FeatureLoss):
    """Half of the mean squared difference, in objects and in the background, after a 3 x 3 convolution (arXiv
    2103.14475).

    Args:
        object_weight, background_weight: weights of the two parts. The defaults are those of the published config.
    """

    average_levels = True

    def __init__(
        self,
        embed_dim: int,
        teacher_dim: int | None = None,
        num_levels: int = 1,
        object_weight: float = 3.0,
        background_weight: float = 12.0,
    ):
        super().__init__(embed_dim, teacher_dim, num_levels)
        self.object_weight, self.background_weight = object_weight, background_weight
        self.adapt = self.for_levels(lambda: nn.Conv2d(self.embed_dim, self.teacher_dim, 3, padding=1))

    def of_level(self, level: int, own: Tensor, other: Tensor, keep: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        difference = (self.adapt[level](own * cast_like(keep, own)).float() - other).square() / 2
        inside = boxes.any(1, keepdim=True) * keep
        return {
            "defeat_object": self.object_weight * mean_where(difference, inside),
            "defeat_background": self.background_weight * mean_where(difference, keep - inside),
        }


class MGD(FeatureLoss):
    """Masked generative distillation (arXiv 2205.01529): the teacher's map is generated from a part of the student's.

    Random tokens of the student are set to zero, two 3 x 3 convolutions generate the whole map, and the squared
    differences from the teacher's are summed over tokens and channels and averaged over the images.

    Args:
        weight: weight of the loss; 2e-5 as published for one-stage detectors, 5e-7 for two-stage detectors.
        mask_ratio: probability that a token is masked; 0.65 as published for one-stage, 0.45 for two-stage detectors.
    """

    def __init__(
        self,
        embed_dim: int,
        teacher_dim: int | None = None,
        num_levels: int = 1,
        weight: float = 2e-5,
        mask_ratio: float = 0.65,
    ):
        super().__init__(embed_dim, teacher_dim, num_levels)
        if not 0 <= mask_ratio <= 1:
            raise InvalidInputError(f"mask_ratio must be between 0 and 1, got {mask_ratio}")
        self.weight, self.mask_ratio = weight, mask_ratio
        self.align = self.alignment()
        dim = self.teacher_dim
        self.generate = self.for_levels(
            lambda: nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1))
        )

    def of_level(self, level: int, own: Tensor, other: Tensor, keep: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        visible = keep * (torch.rand_like(keep) <= 1 - self.mask_ratio)
        first, relu, second = self.generate[level]
        own = self.align[level](own)
        # between the convolutions, too: an image must not see its padding
        generated = second(relu(first(own * cast_like(visible, own))) * cast_like(keep, own)).float()
        return {"mgd": self.weight * ((generated - other).square() * keep).sum() / len(own)}


class GlobalContext(nn.Module):
    """Adds to all tokens what a weighted mean over all of them says (GcNet, arXiv 1904.11492)."""

    def __init__(self, dim: int):
        super().__init__()
        self.attention = nn.Conv2d(dim, 1, 1)
        self.transform = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.LayerNorm(dim // 2), nn.ReLU(), nn.Linear(dim // 2, dim)
        )
        nn.init.kaiming_normal_(self.attention.weight, nonlinearity="relu")
        for parameter in (self.attention.bias, self.transform[-1].weight, self.transform[-1].bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape; `keep` (B, 1, H, W) is 0 for padding."""
        weight = self.attention.weight
        logits = self.attention(cast_like(x, weight)).float().masked_fill(keep == 0, float("-inf"))
        context = (logits.flatten(2).softmax(-1) * x.flatten(2)).sum(-1)
        return x + self.transform(cast_like(context, weight))[..., None, None]


class FGD(FeatureLoss):
    """Focal and global distillation (arXiv 2111.11837).

    Squared differences are weighted by the teacher's attention to places and channels, and summed over objects, each
    divided by its area, and over the background, divided by its area. The attention itself and what a global context
    adds are compared, too. All terms are averaged over the images.

    Args:
        object_weight, background_weight, attention_weight, relation_weight: alpha, beta, gamma, lambda.
        temperature: T of the attention.
    """

    def __init__(
        self,
        embed_dim: int,
        teacher_dim: int | None = None,
        num_levels: int = 1,
        object_weight: float = 1e-3,
        background_weight: float = 5e-4,
        attention_weight: float = 1e-3,
        relation_weight: float = 5e-6,
        temperature: float = 0.5,
    ):
        super().__init__(embed_dim, teacher_dim, num_levels)
        self.object_weight, self.background_weight = object_weight, background_weight
        self.attention_weight, self.relation_weight = attention_weight, relation_weight
        self.temperature = temperature
        self.align = self.alignment()
        self.own_context = self.for_levels(lambda: GlobalContext(self.teacher_dim))
        self.other_context = self.for_levels(lambda: GlobalContext(self.teacher_dim))

    def attention(self, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, H, W) -> attention to places (B, 1, H, W) and channels (B, C, 1, 1), each of mean 1."""
        size, count = x.abs() * keep, keep.sum((2, 3), keepdim=True)
        place = (size.mean(1, keepdim=True) / self.temperature).masked_fill(keep == 0, float("-inf"))
        place = place.flatten(1).softmax(-1).view_as(place) * count
        channel = size.sum((2, 3), keepdim=True) / count / self.temperature
        return place, channel.softmax(1) * x.shape[1]

    def of_level(self, level: int, own: Tensor, other: Tensor, keep: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        images, own = len(own), self.align[level](own).float()
        (own_place, own_channel), (place, channel) = self.attention(own, keep), self.attention(other, keep)
        difference = place * channel * (own - other).square()
        boxes = boxes * keep
        share = boxes / boxes.sum((2, 3), keepdim=True).clamp(min=1)
        # of overlapping objects the smallest one counts; there may be none in the whole batch
        inside = torch.cat([torch.zeros_like(keep), share], dim=1).amax(1, keepdim=True)
        outside = keep * (inside == 0)
        outside = outside / outside.sum((2, 3), keepdim=True).clamp(min=1)
        shift = (own_place - place).abs().sum() + (own_channel - channel).abs().sum()
        relation = self.own_context[level](own, keep) - self.other_context[level](other, keep)
        return {
            "fgd_object": self.object_weight * (difference * inside).sum() / images,
            "fgd_background": self.background_weight * (difference * outside).sum() / images,
            "fgd_attention": self.attention_weight * shift / images,
            "fgd_relation": self.relation_weight * (relation.square() * keep).sum() / images,
        }
