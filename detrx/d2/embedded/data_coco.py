"""COCO annotation files as dataset dicts."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from typing import Any

import pycocotools.mask as mask_util

from detrx.d2.embedded.data_catalog import DatasetCatalog, MetadataCatalog
from detrx.d2.embedded.file_io import PathManager
from detrx.d2.embedded.structures import BoxMode
from detrx.errors import InvalidInputError, UnknownNameError

logger = logging.getLogger(__name__)

__all__ = ["load_coco_json", "read_coco_json", "register_coco_instances"]


def register_coco_instances(
    name: str, metadata: dict[str, Any], json_file: str | os.PathLike, image_root: str | os.PathLike
) -> None:
    """Register the COCO file ``json_file``, which is not opened before it is needed.

    Args:
        metadata: further facts about the dataset, for `MetadataCatalog`.
        image_root: folder to which the file names in the annotation file are relative.
    """
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    facts = dict(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)
    MetadataCatalog.get(name).set(**facts)


def read_coco_json(json_file: str | os.PathLike) -> dict[str, Any]:
    """The content of a COCO file. ``FileNotFoundError`` and ``ValueError`` say what is wrong with it."""
    try:
        with PathManager.open(os.fspath(json_file)) as f:
            content = json.load(f)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The annotation file {json_file} does not exist") from error
    except ValueError as error:  # also UnicodeDecodeError
        raise InvalidInputError(f"The annotation file {json_file} is not valid JSON: {error}") from error
    for key in ("images", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InvalidInputError(f"The annotation file {json_file} is not in COCO's format: it has no list {key!r}")
    return content


def load_coco_json(
    json_file: str | os.PathLike, image_root: str | os.PathLike, dataset_name: str | None = None
) -> list[dict]:
    """Dataset dicts of a COCO file of boxes, ordered by image id; images are not opened.

    Args:
        dataset_name: if given, category ids become positions in the sorted list of ids, and the metadata of the
            dataset gets ``thing_classes`` and ``thing_dataset_id_to_contiguous_id``. Otherwise they stay as they are.

    Returns:
        ``{"file_name", "height", "width", "image_id", "annotations": [{"bbox", "bbox_mode": XYWH_ABS, "category_id",
        "iscrowd"}]}`` per image. Segmentations are passed on; an object whose polygons all have less than three points
        is left out.

    Raises:
        FileNotFoundError, ValueError: see `read_coco_json`; a bad box or ids that are not unique.
        KeyError: an annotation of a category that the file does not list.
    """
    content = read_coco_json(json_file)
    id_map = _contiguous_ids(content["categories"], dataset_name, json_file) if dataset_name is not None else None
    images = {image["id"]: image for image in content["images"]}
    if len(images) < len(content["images"]):
        raise InvalidInputError(f"{json_file}: the ids of the images are not unique")
    annotations = content.get("annotations", [])
    by_image = defaultdict(list)
    for annotation in annotations:
        by_image[annotation["image_id"]].append(annotation)

    stray = sum(len(group) for image_id, group in by_image.items() if image_id not in images)
    if stray:
        logger.warning("%s: %d of %d annotations belong to no image of the file", json_file, stray, len(annotations))
    if len({annotation["id"] for annotation in annotations}) < len(annotations):
        raise AssertionError(f"{json_file}: the ids of the annotations are not unique")

    records, without_polygon = [], 0
    for image_id, image in sorted(images.items()):
        objects = []
        for annotation in by_image[image_id]:
            obj = {key: annotation[key] for key in ("iscrowd", "bbox", "category_id") if key in annotation}
            where = f"{json_file}: annotation {annotation['id']} of image {image_id}"
            if len(obj.get("bbox", ())) != 4:
                raise InvalidInputError(f"{where} has bbox={obj.get('bbox')}, expected [x, y, width, height]")
            if annotation.get("ignore", 0) != 0:
                raise AssertionError(f"{where} has 'ignore', which is not supported; use 'iscrowd'")
            if annotation.get("segmentation"):
                obj["segmentation"] = _segmentation(annotation["segmentation"])
                if not obj["segmentation"]:
                    without_polygon += 1
                    continue
            obj["bbox_mode"] = BoxMode.XYWH_ABS
            if id_map is not None:
                if obj["category_id"] not in id_map:
                    raise UnknownNameError(
                        f"{where} has category_id={obj['category_id']}, which is not in 'categories'"
                    )
                obj["category_id"] = id_map[obj["category_id"]]
            objects.append(obj)
        file_name = os.path.join(image_root, image["file_name"])
        size = {"height": image["height"], "width": image["width"]}
        records.append({"file_name": file_name, **size, "image_id": image_id, "annotations": objects})

    if without_polygon:
        logger.warning("%s: left out %d objects without a polygon of three points", json_file, without_polygon)
    logger.info("Loaded %d images from %s", len(records), json_file)
    return records


def _contiguous_ids(categories: list[dict], dataset_name: str, json_file: str | os.PathLike) -> dict[int, int]:
    """Category id -> position among the sorted ids, also put into the metadata."""
    if not categories:
        raise InvalidInputError(f"The annotation file {json_file} lists no categories")
    names = {category["id"]: category["name"] for category in sorted(categories, key=lambda c: c["id"])}
    if len(names) < len(categories):
        raise InvalidInputError(f"{json_file}: the ids of the categories are not unique")
    id_map = {category_id: position for position, category_id in enumerate(names)}
    if list(names) != list(range(1, len(names) + 1)) and "coco" not in dataset_name:
        logger.warning("%s: the category ids are not 1 to %d; they are mapped to 0, 1, ...", json_file, len(names))
    MetadataCatalog.get(dataset_name).set(thing_classes=list(names.values()), thing_dataset_id_to_contiguous_id=id_map)
    return id_map


def _segmentation(segmentation: list | dict) -> list | dict:
    """Polygons that have three points, possibly none, or a compressed run-length encoding."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return mask_util.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    return [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]
