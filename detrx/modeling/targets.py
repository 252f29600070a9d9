"""Ground truth of a batch, padded to the largest number of boxes for batched tensor operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detrx.d2.structures import Instances
from detrx.layers import to_device, xyxy_to_cxcywh


@dataclass(frozen=True)
class Targets:
    """Ground truth of B images; G is the largest number of boxes in an image.

    Attributes:
        labels: (B, G) int64; padded with 0.
        boxes: (B, G, 4) cxcywh in [0, 1] of the unpadded image; padded with 0.
        counts: number of boxes of each image.
        image_ids: names of the images in messages.
    """

    labels: Tensor
    boxes: Tensor
    counts: tuple[int, ...]
    image_ids: tuple[object, ...]

    @classmethod
    def from_instances(
        cls, instances: Sequence[Instances], image_ids: Sequence[object], device: torch.device
    ) -> Targets:
        """Targets from `gt_boxes` (absolute xyxy in the frame of `image_size`) and `gt_classes` of each image, on the
        host or on `device`."""
        labels = pad_sequence([each.gt_classes for each in instances], batch_first=True)
        boxes = pad_sequence([each.gt_boxes.tensor.float() for each in instances], batch_first=True)
        sizes = torch.tensor([[w, h, w, h] for h, w in (each.image_size for each in instances)], dtype=torch.float32)
        boxes = xyxy_to_cxcywh(boxes / to_device(sizes, boxes.device)[:, None])
        return cls(
            labels=to_device(labels, device),
            boxes=to_device(boxes, device),
            counts=tuple(len(each) for each in instances),
            image_ids=tuple(image_ids),
        )

    @cached_property
    def valid(self) -> Tensor:
        """(B, G) bool, True for real boxes."""
        counts = to_device(torch.tensor(self.counts), self.labels.device)
        return torch.arange(self.labels.shape[1], device=self.labels.device) < counts[:, None]

    def class_agnostic(self) -> Targets:
        """The same boxes, all of class 0."""
        return replace(self, labels=torch.zeros_like(self.labels))
