"""Registration of COCO annotation files."""

from __future__ import annotations

import os
from typing import Any

from detrx.coco.records import load_records
from detrx.d2.embedded.data_catalog import DatasetCatalog, MetadataCatalog
from detrx.d2.embedded.file_io import PathManager
from detrx.d2.embedded.structures import BoxMode

__all__ = ["register_coco_instances"]


def register_coco_instances(
    name: str, metadata: dict[str, Any], json_file: str | os.PathLike, image_root: str | os.PathLike
) -> None:
    """Register the COCO file ``json_file``, which is not opened before it is needed (`load_records`).

    Args:
        metadata: further facts about the dataset, for `MetadataCatalog`.
        image_root: folder to which the file names in the annotation file are relative.
    """

    def load() -> list[dict[str, Any]]:
        return load_records(json_file, image_root, BoxMode.XYWH_ABS, MetadataCatalog.get(name), PathManager.open)

    if name not in DatasetCatalog:
        DatasetCatalog.register(name, load)
    facts = dict(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)
    MetadataCatalog.get(name).set(**facts)
