"""Batches on their way to a GPU."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from detrx.d2.structures import Instances

__all__ = ["PinnableBatch", "map_tensors"]


def map_tensors(batch: Sequence[dict[str, Any]], function: Callable[[Tensor], Tensor]) -> list[dict[str, Any]]:
    """Apply a function to the images of a batch and to what its instances hold in tensors.

    Args:
        batch: dicts with "image" and "instances", both optional.

    Returns:
        New dicts. All other entries, and fields of instances without a tensor, are the same objects as in `batch`.
    """

    def changed(key: str, value: Any) -> Any:
        if key == "image" and isinstance(value, Tensor):
            return function(value)
        if key == "instances" and isinstance(value, Instances):
            fields = {name: _map_field(field, function) for name, field in value.get_fields().items()}
            return type(value)(value.image_size, **fields)
        return value

    return [{key: changed(key, value) for key, value in each.items()} for each in batch]


def _map_field(field: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(field, Tensor):
        return function(field)
    if isinstance(getattr(field, "tensor", None), Tensor):  # boxes, masks and keypoints of either provider
        field = copy.copy(field)
        field.tensor = function(field.tensor)
    return field


class PinnableBatch(list):
    """A batch which `DataLoader` knows how to copy to pinned memory; what it gives then is a plain list of dicts."""

    def pin_memory(self) -> list[dict[str, Any]]:
        return map_tensors(self, Tensor.pin_memory)
