"""Boxes, the instances of an image, and images padded into one batch."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


@enum.unique
class BoxMode(enum.IntEnum):
    """How four (or five) numbers describe a box. The values are those that Detectron2 writes to files."""

    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2
    XYWH_REL = 3
    XYWHA_ABS = 4

    @staticmethod
    def convert(box: Any, from_mode: BoxMode, to_mode: BoxMode) -> Any:
        """Convert between ``XYXY_ABS`` and ``XYWH_ABS``; other modes raise ``NotImplementedError``.

        Args:
            box: a list or tuple of 4 numbers (computed in float32), or an array or tensor (N, 4).

        Returns:
            A new object of the type of ``box``; ``box`` itself if the modes are the same.
        """
        if from_mode == to_mode:
            return box
        if {from_mode, to_mode} != {BoxMode.XYXY_ABS, BoxMode.XYWH_ABS}:
            raise NotImplementedError(f"Conversion of boxes from {from_mode!r} to {to_mode!r} is not supported")
        single = isinstance(box, (list, tuple))
        assert not single or len(box) == 4, f"A single box has 4 numbers, got {box}"
        boxes = torch.tensor(box)[None] if single else torch.as_tensor(box).clone()
        boxes[:, 2:] += boxes[:, :2] if from_mode == BoxMode.XYWH_ABS else -boxes[:, :2]
        if single:
            return type(box)(boxes[0].tolist())
        return boxes.numpy() if isinstance(box, np.ndarray) else boxes


class Boxes:
    """N boxes ``(x1, y1, x2, y2)`` in absolute coordinates: ``tensor``, (N, 4) float32."""

    def __init__(self, tensor: Tensor | Sequence):
        tensor = torch.as_tensor(tensor).to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 4)
        assert tensor.dim() == 2 and tensor.size(-1) == 4, f"Boxes need a (N, 4) tensor, got {tuple(tensor.shape)}"
        self.tensor = tensor

    def to(self, device: torch.device | str) -> Boxes:
        return Boxes(self.tensor.to(device=device))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def area(self) -> Tensor:
        """Areas, (N,)."""
        return (self.tensor[:, 2] - self.tensor[:, 0]) * (self.tensor[:, 3] - self.tensor[:, 1])

    def clip(self, box_size: tuple[int, int]) -> None:
        """Limit x to [0, width] and y to [0, height] of ``box_size = (height, width)``; replaces ``tensor``."""
        assert torch.isfinite(self.tensor).all(), "Boxes to clip contain infinite or NaN values"
        height, width = box_size
        x, y = self.tensor[:, 0::2].clamp(0, width), self.tensor[:, 1::2].clamp(0, height)
        self.tensor = torch.stack((x, y), dim=-1).flatten(1)

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply the coordinates, writing into ``tensor``."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(N,) bool: both sides longer than ``threshold``."""
        sides = self.tensor[:, 2:] - self.tensor[:, :2]
        return (sides > threshold).all(dim=1)

    def __getitem__(self, item: int | slice | Tensor) -> Boxes:
        """Index as a tensor is indexed; an int gives ``Boxes`` of length one."""
        if isinstance(item, int):
            return Boxes(self.tensor[item].view(1, -1))
        selected = self.tensor[item]
        assert selected.dim() == 2, f"Indexing Boxes with {item} does not give boxes"
        return Boxes(selected)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Intersection over union of N with M boxes, (N, M); 0 where they do not meet."""
    a, b = boxes1.tensor[:, None], boxes2.tensor
    sides = torch.min(a[..., 2:], b[:, 2:]) - torch.max(a[..., :2], b[:, :2])
    intersection = sides.clamp_(min=0).prod(dim=2)
    union = boxes1.area()[:, None] + boxes2.area() - intersection
    return torch.where(intersection > 0, intersection / union, intersection.new_zeros(1))


class Instances:
    """The instances of one image: fields such as ``gt_boxes`` or ``scores``, all of the same length.

    ``instances.name = value`` sets a field, ``instances.name`` reads it, ``instances[index]`` indexes all of them.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any):
        """``image_size``: (height, width) of the frame of the coordinates. The others are fields."""
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width)."""
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "_fields" or name not in self._fields:  # "_fields" is missing while copy and pickle build the object
            raise AttributeError(f"Instances have no field {name!r}")
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        """Set a field; its length must be that of the other fields."""
        if self._fields:
            assert len(value) == len(self), f"Field {name!r} has length {len(value)}, the Instances have {len(self)}"
        self._fields[name] = value

    def get(self, name: str) -> Any:
        return self._fields[name]

    def has(self, name: str) -> bool:
        return name in self._fields

    def remove(self, name: str) -> None:
        del self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """The fields themselves, not a copy."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """New instances, ``to(...)`` called on every field that has it."""
        moved = {k: v.to(*args, **kwargs) if hasattr(v, "to") else v for k, v in self._fields.items()}
        return Instances(self._image_size, **moved)

    def __getitem__(self, item: int | slice | Tensor) -> Instances:
        """A mask on a GPU makes the host wait once, for the number of those that it takes."""
        if type(item) is int:
            if not -len(self) <= item < len(self):
                raise IndexError(f"Index {item} is out of range for {len(self)} instances")
            item = slice(item, None, len(self))
        elif isinstance(item, Tensor) and item.dtype == torch.bool and item.device.type != "cpu":
            if item.shape != (len(self),):
                raise IndexError(f"A mask of shape {tuple(item.shape)} does not fit {len(self)} instances")
            item = item.nonzero()[:, 0]
        return Instances(self._image_size, **{name: value[item] for name, value in self._fields.items()})

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without fields have no length")

    def __iter__(self):
        raise NotImplementedError("Instances cannot be iterated over")

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        return (
            f"Instances(num_instances={len(self) if fields else 0}, image_size={self._image_size}, fields=[{fields}])"
        )


class ImageList:
    """Images of ``image_sizes`` (h, w), each at the top left of one padded ``tensor`` (N, ..., H, W)."""

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]):
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, index: int) -> Tensor:
        """Image ``index`` without its padding."""
        height, width = self.image_sizes[index]
        return self.tensor[index, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @staticmethod
    def from_tensors(tensors: Sequence[Tensor], size_divisibility: int = 0, pad_value: float = 0.0) -> ImageList:
        """Pad images (..., h, w) at the bottom and right to one size, a multiple of ``size_divisibility``."""
        assert len(tensors) > 0, "No images to batch"
        leading = tensors[0].shape[:-2]
        assert all(image.shape[:-2] == leading for image in tensors), "Images differ in more than height and width"
        sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        height, width = (max(side) for side in zip(*sizes, strict=True))
        if size_divisibility > 1:
            height, width = (-(-side // size_divisibility) * size_divisibility for side in (height, width))
        batch = tensors[0].new_full((len(tensors), *leading, height, width), pad_value)
        for padded, image, (h, w) in zip(batch, tensors, sizes, strict=True):
            padded[..., :h, :w].copy_(image)
        return ImageList(batch, sizes)
