"""Augmentation of images and boxes together, on torchvision's v2 transforms.

A sample is a dict with `image` (a `tv_tensors.Image`, (3, H, W) uint8) and `boxes` (a `tv_tensors.BoundingBoxes`, XYXY
in pixels). All randomness comes from torch's global CPU generator, which the loader seeds for each sample.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

Sample = dict[str, Any]


class ResizeShortestSide(nn.Module):
    """Resize so that the shorter side is one of `sizes` (drawn at random), but the longer at most `max_size`."""

    def __init__(self, sizes: int | Sequence[int], max_size: int | None = None) -> None:
        super().__init__()
        self.sizes = [sizes] if isinstance(sizes, int) else list(sizes)
        self.max_size = max_size
        if max_size is not None and max_size <= max(self.sizes):
            raise ValueError(f"max_size must exceed all of sizes, got {max_size} and {self.sizes}")

    def forward(self, sample: Sample) -> Sample:
        from torchvision.transforms.v2 import functional as F

        size = self.sizes[int(torch.randint(len(self.sizes), ()))]
        return _on_tensors(sample, lambda x: F.resize(x, [size], max_size=self.max_size, antialias=True))


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


def _draw(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def _on_tensors(sample: Sample, function: Callable[[torch.Tensor], torch.Tensor]) -> Sample:
    from torchvision.tv_tensors import TVTensor

    return {key: function(value) if isinstance(value, TVTensor) else value for key, value in sample.items()}


def _torchvision_v2() -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise ImportError("image transforms need torchvision: pip install torchvision") from error
    return v2
