"""Box arithmetic on tensors. Boxes are (..., 4), in the format that the name of a function says."""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre, width, height -> two corners."""
    centre, size = boxes.split(2, dim=-1)
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) two corners -> centre, width, height."""
    low, high = boxes.split(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Logit of `x`, with `x` and `1 - x` clamped to at least `eps`."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def iou_xyxy(a: Tensor, b: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """IoU and GIoU (arXiv 1902.09630) of boxes whose leading dimensions broadcast.

    For all pairs call `iou_xyxy(a[..., :, None, :], b[..., None, :, :])`. `eps` is added to both denominators, which
    keeps values and gradients of degenerate boxes finite.

    Args:
        a, b: (..., 4) corner boxes in the same unit.

    Returns:
        iou, giou: (...) in [0, 1] and [-1, 1].
    """
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    outer = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = inner[..., 0] * inner[..., 1]
    union = area_a + area_b - intersection
    hull = outer[..., 0] * outer[..., 1]
    iou = intersection / (union + eps)
    return iou, iou - (hull - union) / (hull + eps)
