"""Non-maximum suppression of detections in COCO's result format."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from detrx.errors import InvalidInputError

__all__ = ["AP_NMS", "check_nms", "without_duplicates"]

AP_NMS = "AP_NMS"
"""Name of the AP after non-maximum suppression. "AP-NMS" would be that of a class."""


def check_nms(iou: float) -> None:
    """Raise InvalidInputError if `iou` is no threshold in [0, 1]."""
    if not isinstance(iou, (int, float)) or isinstance(iou, bool) or not 0 <= iou <= 1:
        raise InvalidInputError(f"the IoU of non-maximum suppression must be in [0, 1], got {iou!r}")


def without_duplicates(detections: Sequence[Mapping[str, Any]], iou: float) -> list[Mapping[str, Any]]:
    """The detections that non-maximum suppression leaves, per image and class: what a detector would give if it had
    learned to leave out duplicates.

    Args:
        iou: a detection with a larger overlap with a better one is left out.

    Raises:
        ValueError: `iou` is not in [0, 1].
    """
    check_nms(iou)
    from torchvision.ops import nms

    groups: dict[tuple[Any, Any], list[int]] = defaultdict(list)
    for position, entry in enumerate(detections):
        groups[entry["image_id"], entry["category_id"]].append(position)
    boxes = torch.tensor([entry["bbox"] for entry in detections], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = torch.tensor([entry["score"] for entry in detections], dtype=torch.float64)
    kept: list[int] = []
    for positions in groups.values():  # one by one: the time of batched_nms grows with the square of their number
        if len(positions) == 1:
            kept += positions
            continue
        members = torch.tensor(positions)
        kept += members[nms(boxes[members], scores[members], iou)].tolist()
    return [detections[position] for position in sorted(kept)]
