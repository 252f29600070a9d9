"""Augmentation of images and boxes together, on torchvision's v2 transforms.

A sample is a dict with `image` (a `tv_tensors.Image`, (3, H, W) uint8) and `boxes` (a `tv_tensors.BoundingBoxes`, XYXY
in pixels). All randomness comes from torch's global CPU generator, which the loader seeds for each sample.

Transforms keep the number and order of the boxes, as classes are kept elsewhere. An object that is gone has a box
without area, which the mapper leaves out together with its class.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from detrx.errors import InvalidInputError, MissingImportError

Sample = dict[str, Any]

_LONGEST = 32  # times the shorter side


class ResizeShortestSide(nn.Module):
    """Resize so that the shorter side is one of `sizes` (drawn at random), but the longer at most `max_size`.

    Sizes are those of torchvision's `Resize`, except at the extremes: no side is less than one pixel, and without
    `max_size` the longer side is at most 32 times the size that was drawn (a line of 4000 x 2 pixels would need
    gigabytes).
    """

    def __init__(self, sizes: int | Sequence[int], max_size: int | None = None) -> None:
        super().__init__()
        self.sizes = [sizes] if isinstance(sizes, int) else list(sizes)
        self.max_size = max_size
        if max_size is not None and max_size <= max(self.sizes):
            raise InvalidInputError(f"max_size must exceed all of sizes, got {max_size} and {self.sizes}")

    def forward(self, sample: Sample) -> Sample:
        from torchvision.transforms.v2 import functional as F

        shorter = self.sizes[int(torch.randint(len(self.sizes), ()))]
        sides = sample["image"].shape[-2:]
        longer = shorter * max(sides) // min(sides)
        most = _LONGEST * shorter if self.max_size is None else self.max_size
        if longer > most:
            shorter, longer = most * shorter // longer, most
        sides = _oriented(shorter, longer, sides)
        return _on_tensors(sample, lambda x: F.resize(x, sides, antialias=True))


class ResizeLongestSide(nn.Module):
    """Resize so that the longer side is `size`; no side is ever less than one pixel."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, sample: Sample) -> Sample:
        from torchvision.transforms.v2 import functional as F

        sides = sample["image"].shape[-2:]
        sides = _oriented(self.size * min(sides) // max(sides), self.size, sides)
        return _on_tensors(sample, lambda x: F.resize(x, sides, antialias=True))


class RandomSizeCrop(nn.Module):
    """Crop a window with sides drawn from `min_size` to `max_size` (or the side of the image, if smaller)."""

    def __init__(self, min_size: int, max_size: int) -> None:
        super().__init__()
        self.min_size, self.max_size = min_size, max_size

    def forward(self, sample: Sample) -> Sample:
        from torchvision.transforms.v2 import functional as F

        sides = sample["image"].shape[-2:]
        height, width = (_draw(min(self.min_size, side), min(self.max_size, side)) for side in sides)
        top, left = _draw(0, sides[0] - height), _draw(0, sides[1] - width)
        return _on_tensors(sample, lambda x: F.crop(x, top, left, height, width))


class ScaleJitter(nn.Module):
    """Resize to `scale` times the largest size that fits into a square of `size`, with `scale` drawn from a range."""

    def __init__(self, size: int, scale_range: tuple[float, float]) -> None:
        super().__init__()
        self.size, self.scale_range = size, tuple(scale_range)
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise InvalidInputError(f"scale_range must be 0 < low <= high, got {self.scale_range}")

    def forward(self, sample: Sample) -> Sample:
        from torchvision.transforms.v2 import functional as F

        sides = sample["image"].shape[-2:]
        low, high = self.scale_range
        factor = self.size / max(sides) * (low + (high - low) * float(torch.rand(())))
        sides = [max(1, round(factor * side)) for side in sides]
        return _on_tensors(sample, lambda x: F.resize(x, sides, antialias=True))


class FixedSizeCrop(nn.Module):
    """Crop a square of `size` at a random place; sides that are shorter are kept, and padded at the right and bottom.

    Args:
        pad: whether to pad.
        fill: RGB colour of the padding.
        min_visible: boxes of which the crop leaves a smaller fraction of the area lose the rest of it, too.
    """

    def __init__(self, size: int, pad: bool = True, fill: Sequence[int] = (0, 0, 0), min_visible: float = 0.0) -> None:
        super().__init__()
        self.size, self.pad, self.fill, self.min_visible = size, pad, list(fill), min_visible
        if not 0 <= min_visible <= 1:
            raise InvalidInputError(f"min_visible must be in [0, 1], got {min_visible}")

    def forward(self, sample: Sample) -> Sample:
        from torchvision.transforms.v2 import functional as F

        sides = sample["image"].shape[-2:]
        height, width = (min(self.size, side) for side in sides)
        top, left = _draw(0, sides[0] - height), _draw(0, sides[1] - width)
        whole = _areas(sample["boxes"])
        sample = _on_tensors(sample, lambda x: F.crop(x, top, left, height, width))
        boxes = sample["boxes"]
        boxes[_areas(boxes) < self.min_visible * whole] = 0
        if self.pad and (height, width) != (self.size, self.size):
            padding = [0, 0, self.size - width, self.size - height]
            sample = _on_tensors(sample, lambda x: F.pad(x, padding, fill=self.fill))
        return sample


def detr_augmentation(
    flip_prob: float = 0.5,
    sizes: Sequence[int] = tuple(range(480, 801, 32)),
    max_size: int = 1333,
    crop_prob: float = 0.5,
    sizes_before_crop: Sequence[int] = (400, 500, 600),
    crop_range: tuple[int, int] = (384, 600),
) -> nn.Module:
    """The recipe of DETR: flip, and a random resize that is preceded by resize and crop with `crop_prob`.

    Args:
        sizes: choices of the final shorter side, in pixels; `max_size` caps the longer side.
        sizes_before_crop: choices of the shorter side before cropping.
        crop_range: range of the sides of the crop, in pixels.
    """
    v2 = _torchvision_v2()
    resize = ResizeShortestSide(sizes, max_size)
    crop = v2.Compose([ResizeShortestSide(sizes_before_crop), RandomSizeCrop(*crop_range), resize])
    return v2.Compose(
        [v2.RandomHorizontalFlip(flip_prob), v2.RandomChoice([crop, resize], p=[crop_prob, 1 - crop_prob])]
    )


def lsj_augmentation(
    size: int = 1024,
    scale_range: tuple[float, float] = (0.1, 2.0),
    flip_prob: float = 0.5,
    pad: bool = True,
    fill: Sequence[int] = (124, 116, 104),
    min_visible: float = 0.1,
) -> nn.Module:
    """Large-scale jitter (Simple Copy-Paste, arXiv 2012.07177): flip, random scale, and a crop of a fixed size.

    With `pad`, all images get that size, and the model takes their padding for a part of the image: nothing tells it
    otherwise, and boxes are normalised to the square. So do ViTDet, and detection transformers in Detectron2 that are
    trained this way. `fill` is ImageNet's mean colour: normalised, it is what the model itself pads batches with.
    Without `pad`, small images stay small, and the model masks their padding in a batch as it always does.

    Args:
        size: side of the crop, in pixels.
        scale_range: of the image, relative to the largest that fits into the crop.
        min_visible: boxes of which the crop leaves a smaller fraction of the area are dropped; 0: none. [ours]
    """
    v2 = _torchvision_v2()
    crop = FixedSizeCrop(size, pad, fill, min_visible)
    return v2.Compose([v2.RandomHorizontalFlip(flip_prob), ScaleJitter(size, scale_range), crop])


def resize_augmentation(size: int = 800, max_size: int = 1333) -> nn.Module:
    """What a test image goes through: shorter side to `size`, the longer at most `max_size` pixels."""
    _torchvision_v2()
    return ResizeShortestSide(size, max_size)


def digits_augmentation(
    shuffle_prob: float = 0.5,
    invert_prob: float = 0.5,
    jitter: float = 0.0,
    translate: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
) -> nn.Module:
    """For the digits datasets: colours are arbitrary there, but a mirrored digit would be no digit.

    Args:
        shuffle_prob, invert_prob: how often the colour channels are permuted, and the colours inverted.
        jitter: strength of the change of brightness, contrast and saturation; 0 is none.
        translate: largest shift, as a fraction of the image's side.
        scale: range of the zoom.
    """
    v2 = _torchvision_v2()
    steps = [v2.RandomApply([v2.RandomChannelPermutation()], p=shuffle_prob), v2.RandomInvert(invert_prob)]
    if jitter:
        steps.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter))
    if translate or tuple(scale) != (1.0, 1.0):
        bilinear = v2.InterpolationMode.BILINEAR
        affine = v2.RandomAffine(0, (translate, translate), tuple(scale), interpolation=bilinear, fill=127)
        steps.append(affine)
    return v2.Compose(steps)


def _oriented(shorter: int, longer: int, sides: Sequence[int]) -> list[int]:
    """Height and width of an image of `sides` (height, width) once it has these two, of at least one pixel each."""
    shorter = max(1, shorter)
    return [shorter, longer] if sides[0] <= sides[1] else [longer, shorter]


def _draw(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def _areas(boxes: torch.Tensor) -> torch.Tensor:
    """Areas (N,) of boxes (N, 4) XYXY."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _on_tensors(sample: Sample, function: Callable[[torch.Tensor], torch.Tensor]) -> Sample:
    from torchvision.tv_tensors import TVTensor

    return {key: function(value) if isinstance(value, TVTensor) else value for key, value in sample.items()}


def _torchvision_v2() -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise MissingImportError("image transforms need torchvision: pip install torchvision") from error
    return v2
