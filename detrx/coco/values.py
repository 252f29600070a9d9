"""What single values in COCO files may be: ids, numbers, boxes."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

__all__ = ["Id", "area_of", "id_order", "is_box", "is_finite", "is_id", "whole_number"]

Id = int | float | str
"""The type of ids: whole numbers or text, see `is_id`."""

_LARGEST = 1e30  # beyond any coordinate, and its square is finite


def is_id(value: Any) -> bool:
    """Whether this is a whole number (some programs write 3.0) or text. The number 1 and the text "1" are not the same;
    1 and 1.0 are."""
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def id_order(value: Any) -> tuple[int, Any]:
    """Sort key of ids of any type: numbers first, then text, then what else a dataset of one's own may have."""
    if isinstance(value, Real):
        return 0, value
    return (1, value) if isinstance(value, str) else (2, repr(value))


def whole_number(value: Any) -> int | None:
    """A number without fraction as int (some programs write 3.0), or None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def is_finite(value: Any) -> bool:
    """Whether this is a finite number of a size that can be computed with."""
    if type(value) not in (float, int) and (isinstance(value, bool) or not isinstance(value, Real)):
        return False
    return -_LARGEST < value < _LARGEST


def is_box(box: Any) -> bool:
    """Whether this is a list or tuple of four finite numbers."""
    return isinstance(box, (list, tuple)) and len(box) == 4 and all(map(is_finite, box))


def area_of(annotation: Mapping[str, Any]) -> float:
    """Its "area", or where it has none, that of its box [x, y, width, height], 0 if a side is negative."""
    if (area := annotation.get("area")) is not None:
        return area
    _, _, width, height = annotation["bbox"]
    return max(width, 0) * max(height, 0)
