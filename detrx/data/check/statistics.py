"""Counts and spreads of the images and boxes of a dataset."""

from __future__ import annotations

from typing import Any

import numpy as np

from .boxes import BoxTable

__all__ = ["statistics_of"]

_SMALL, _LARGE = 32**2, 96**2  # COCO's limits, in pixels of area


def statistics_of(table: BoxTable, records: list[dict[str, Any]], classes: list[str]) -> dict[str, Any]:
    """Counts of images and boxes (crowds apart), by class, per image and by size; sizes in pixels."""
    real = ~table.crowd
    boxes, labels, owners = table.boxes[real], table.classes[real], table.record[real]
    per_image = np.bincount(owners, minlength=len(records))
    areas = np.clip(boxes[:, 2:], 0, None).prod(1)
    names = classes
    if not classes:  # unknown: their numbers
        numbers_of, labels = np.unique(labels, return_inverse=True)
        names = [str(number) for number in numbers_of]
    pairs = np.unique(np.column_stack([labels, owners]), axis=0)[:, 0] if len(labels) else labels
    by_class, images_by_class = (np.bincount(values, minlength=len(names)) for values in (labels, pairs))
    image_size = {
        side: _spread(np.array([record.get(side, np.nan) for record in records], dtype=np.float64))
        for side in ("width", "height")
    }
    return {
        "images": len(records),
        "images_without_boxes": int((per_image == 0).sum()),
        "image_size": image_size,
        "boxes": len(boxes),
        "crowds": int(table.crowd.sum()),
        "boxes_per_image": {**_spread(per_image), "mean": float(per_image.mean()) if len(records) else None},
        "boxes_by_size": {
            "small": int((areas < _SMALL).sum()),
            "medium": int(((areas >= _SMALL) & (areas < _LARGE)).sum()),
            "large": int((areas >= _LARGE).sum()),
        },
        "box_side": _spread(np.sqrt(areas)),
        "classes": [
            {"name": name, "boxes": int(n), "images": int(m)}
            for name, n, m in zip(names, by_class, images_by_class, strict=True)
        ],
        "classes_without_boxes": [name for name, n in zip(names, by_class, strict=True) if n == 0],
    }


def _spread(values: np.ndarray) -> dict[str, float | None]:
    values = values[np.isfinite(values)]
    if not len(values):
        return dict.fromkeys(("min", "median", "max"))
    return {"min": float(values.min()), "median": float(np.median(values)), "max": float(values.max())}
