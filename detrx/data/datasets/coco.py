"""COCO files as dataset dicts, with one clear error for whatever is wrong with the file."""

import os

from detrx.coco.records import load_records
from detrx.d2.data import MetadataCatalog
from detrx.d2.structures import BoxMode
from detrx.d2.utils import PathManager

from .sources import missing_file


def load_coco(json_file: str | os.PathLike, image_root: str | os.PathLike, name: str | None = None) -> list[dict]:
    """Read a COCO annotation file. The records are those of Detectron2's `load_coco_json`.

    Ids that occur twice, unknown categories and malformed entries are errors. Annotations of images that are not
    listed, names that occur twice and an annotation id 0 are not: one warning per kind is logged. Category ids may have
    gaps.

    Args:
        json_file: COCO "instances" annotations.
        image_root: folder that the file names in it are relative to.
        name: dataset name, whose metadata gets the class names, and category ids become 0, 1, ... in the order of the
            ids; None leaves category ids as they are in the file.

    Returns:
        Dataset dicts, ordered by image id: `file_name`, `height`, `width`, `image_id`, `annotations` (boxes XYWH in
        pixels).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its content is not what it should be; the message names the file and the first entry at fault.
    """
    metadata = MetadataCatalog.get(name) if name is not None else None
    try:
        return load_records(json_file, image_root, BoxMode.XYWH_ABS, metadata, PathManager.open)
    except FileNotFoundError as error:
        raise missing_file(json_file, dataset=name) from error
