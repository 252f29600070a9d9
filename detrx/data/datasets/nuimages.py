"""nuImages: its native tables as a COCO file, with the 10 detection classes of nuScenes."""

import json
from pathlib import Path
from typing import Any

from detrx.errors import InvalidInputError

from .converted import converted_file
from .sources import read_source

SPLITS = ("train", "val", "mini")
CLASSES = (
    "car",
    "truck",
    "trailer",
    "bus",
    "construction_vehicle",
    "bicycle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "barrier",
)
# Objects of other categories (animals, debris, bicycle racks, ...) are no ground truth, as in nuScenes' detection task.
_CLASS_OF_CATEGORY = {
    "vehicle.car": "car",
    "vehicle.truck": "truck",
    "vehicle.trailer": "trailer",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.construction": "construction_vehicle",
    "vehicle.bicycle": "bicycle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "movable_object.barrier": "barrier",
}
_TABLES = {
    "category": ("token", "name"),
    "sample_data": ("token", "filename", "width", "height", "is_key_frame"),
    "object_ann": ("token", "sample_data_token", "category_token", "bbox"),
}


def nuimages_file(root: Path, split: str) -> Path:
    """COCO file of a split, converted when it is first asked for.

    Args:
        root: holds the tables in v1.0-train, v1.0-val and v1.0-mini, and the images in samples.
        split: "train", "val" or "mini".

    Raises:
        FileNotFoundError, ValueError: a table is missing or faulty; see also `converted_file`.
    """
    tables = root / f"v1.0-{split}"
    sources = [tables / f"{table}.json" for table in _TABLES]
    return converted_file(f"nuimages_{split}", root, sources, lambda: nuimages_to_coco(tables))


def nuimages_to_coco(tables: Path) -> dict[str, Any]:
    """The key frames of a folder of tables, in the order of their file names, with their boxes, in COCO's format.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: an entry lacks a key, has a bad box, or refers to something that is not there; names file and entry.
    """
    rows = {table: _read(tables / f"{table}.json", keys) for table, keys in _TABLES.items()}
    categories = {row["token"]: row["name"] for row in rows["category"]}
    images_only = (row for row in rows["sample_data"] if row["is_key_frame"] and row["width"])  # no lidar sweeps
    key_frames = sorted(images_only, key=lambda row: row["filename"])
    image_ids = {row["token"]: index for index, row in enumerate(key_frames, start=1)}
    frames = {row["token"] for row in rows["sample_data"]}

    annotations: list[dict[str, Any]] = []
    for row in rows["object_ann"]:
        where = f"annotation file {tables / 'object_ann.json'}: object {row['token']!r}"
        if row["category_token"] not in categories:
            raise InvalidInputError(
                f"{where} has category_token {row['category_token']!r}, which is not in category.json"
            )
        if row["sample_data_token"] not in frames:
            raise InvalidInputError(
                f"{where} has sample_data_token {row['sample_data_token']!r}, not in sample_data.json"
            )
        label = _CLASS_OF_CATEGORY.get(categories[row["category_token"]])
        if label is None or row["sample_data_token"] not in image_ids:
            continue
        width, height = _size(row["bbox"], where)
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image_ids[row["sample_data_token"]],
                "category_id": CLASSES.index(label) + 1,
                "bbox": [*row["bbox"][:2], width, height],
                "area": width * height,
                "iscrowd": 0,
            }
        )
    images = [
        {"id": image_ids[row["token"]], "file_name": row["filename"], "width": row["width"], "height": row["height"]}
        for row in key_frames
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for index, name in enumerate(CLASSES, start=1)],
    }


def _read(file: Path, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = read_source(file)
    if not isinstance(rows, list):
        raise InvalidInputError(f"annotation file {file}: expected a list, got {type(rows).__name__}")
    for position, row in enumerate(rows):
        for key in keys:
            if not isinstance(row, dict) or key not in row:
                raise InvalidInputError(f"annotation file {file}: entry {position} has no {key!r}")
    return rows


def _size(box: Any, where: str) -> tuple[float, float]:
    """Width and height of a box [xmin, ymin, xmax, ymax]."""
    try:
        left, top, right, bottom = box
        width, height = right - left, bottom - top
        if width >= 0 and height >= 0:
            return width, height
    except (TypeError, ValueError):
        pass
    raise InvalidInputError(f"{where} has bbox {json.dumps(box)}, expected [xmin, ymin, xmax, ymax]")
