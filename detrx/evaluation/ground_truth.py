"""The ground truth of datasets that have no annotation file."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from detrx.d2.structures import BoxMode

__all__ = ["ground_truth_of"]


def ground_truth_of(records: Iterable[Mapping[str, Any]], metadata: Any) -> dict[str, Any]:
    """The content of a COCO annotation file for dataset dicts.

    Args:
        records: Detectron2's dataset dicts, with an ``image_id`` each.
        metadata: of the dataset: names of the classes, and category ids, if these are not the class indices.
    """
    records = list(records)
    index_of = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    ids = {index: category for category, index in index_of.items()}
    annotations: list[dict[str, Any]] = []
    for record in records:
        for each in record.get("annotations", ()):
            label, corners = int(each["category_id"]), np.array([each["bbox"]], dtype=np.float64)
            (box,) = BoxMode.convert(corners, each["bbox_mode"], BoxMode.XYWH_ABS).tolist()
            facts = {"category_id": ids.get(label, label), "bbox": box, "iscrowd": int(each.get("iscrowd") or 0)}
            annotations.append({"id": len(annotations) + 1, "image_id": record["image_id"], **facts})
    labels = {int(each["category_id"]) for record in records for each in record.get("annotations", ())}
    names = metadata.get("thing_classes") or [str(i) for i in range(max(labels, default=0) + 1)]
    return {
        "images": [{"id": record["image_id"]} for record in records],
        "annotations": annotations,
        "categories": [{"id": ids.get(index, index), "name": str(name)} for index, name in enumerate(names)],
    }
