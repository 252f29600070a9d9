"""Cityscapes: boxes of its polygons as a COCO file, with the 8 classes that have instances and are evaluated."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from tqdm import tqdm

from detrx.errors import InvalidInputError

from .converted import converted_file
from .sources import missing_file, read_source

SPLITS = ("train", "val")
CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
_GROUP = "group"
# fmt: off
_OTHER_LABELS = frozenset((
    "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road",
    "sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole",
    "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "caravan", "trailer",
    "caravangroup", "trailergroup",
))
# fmt: on
_NOT_DRAWN = "license plate"  # hides nothing: the car continues under it
_POLYGONS, _IMAGE = "_gtFine_polygons.json", "_leftImg8bit.png"


def cityscapes_file(root: Path, split: str) -> Path:
    """COCO file of a split, converted when it is first asked for.

    Args:
        root: holds gtFine/<split>/<city>/*_gtFine_polygons.json and leftImg8bit/<split>/<city>/*_leftImg8bit.png.
        split: "train" or "val".

    Raises:
        FileNotFoundError, ValueError: the polygons are missing or faulty; see also `converted_file`.
    """
    folder = root / "gtFine" / split
    if not folder.is_dir():
        raise missing_file(folder, "folder of annotations")
    sources = sorted(folder.glob(f"*/*{_POLYGONS}"))
    if not sources:
        raise FileNotFoundError(f"annotation files {folder}/*/*{_POLYGONS}: there is none")
    return converted_file(f"cityscapes_{split}", root, sources, lambda: cityscapes_to_coco(sources))


def cityscapes_to_coco(polygon_files: list[Path], progress: bool = True) -> dict[str, Any]:
    """Polygon files as one COCO file; file names of images are <city>/<name>_leftImg8bit.png.

    A box encloses the pixels of an object that are not hidden by later polygons, as in the official *_instanceIds.png.
    Objects without such pixels are left out. Groups ("cargroup") are crowds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an entry lacks a key, or has an unknown label or no polygon; names file and entry.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for file in tqdm(polygon_files, desc="converting Cityscapes", unit="img", disable=not progress):
        content = read_source(file)
        objects = _objects(content, file)
        images.append(
            {
                "id": len(images) + 1,
                "file_name": f"{file.parent.name}/{file.name.removesuffix(_POLYGONS)}{_IMAGE}",
                "width": content["imgWidth"],
                "height": content["imgHeight"],
            }
        )
        for label, box, area in _visible(objects, content["imgWidth"], content["imgHeight"]):
            name = label.removesuffix(_GROUP)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": CLASSES.index(name) + 1,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(label != name),
                }
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for index, name in enumerate(CLASSES, start=1)],
    }


def _objects(content: Any, file: Path) -> list[tuple[str, list[tuple[float, float]]]]:
    """Labels and polygons, back to front."""
    for key, kind in (("imgWidth", int), ("imgHeight", int), ("objects", list)):
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise InvalidInputError(f"annotation file {file}: has no {key!r}, or one that is no {kind.__name__}")
    objects = []
    for position, entry in enumerate(content["objects"]):
        where = f"annotation file {file}: objects[{position}]"
        for key in ("label", "polygon"):
            if not isinstance(entry, dict) or key not in entry:
                raise InvalidInputError(f"{where} has no {key!r}")
        label = entry["label"]
        if str(label).removesuffix(_GROUP) not in CLASSES and label not in _OTHER_LABELS and label != _NOT_DRAWN:
            raise InvalidInputError(f"{where} has the unknown label {label!r}")
        try:
            polygon = [(float(x), float(y)) for x, y in entry["polygon"]]
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"{where} ({label}) has a polygon that is no list of [x, y]") from error
        if label != _NOT_DRAWN and not entry.get("deleted"):
            objects.append((label, polygon))
    return objects


def _visible(
    objects: list[tuple[str, list[tuple[float, float]]]], width: int, height: int
) -> list[tuple[str, list[int], int]]:
    """Label, box (XYWH in pixels) and number of visible pixels of each object or group of a class."""
    canvas = Image.new("I", (width, height))
    draw = ImageDraw.Draw(canvas)
    for number, (_, polygon) in enumerate(objects, start=1):
        if len(polygon) > 1:
            draw.polygon(polygon, fill=number)
    numbers = np.asarray(canvas)
    areas = np.bincount(numbers.ravel(), minlength=len(objects) + 1)
    found = []
    for number, where in enumerate(ndimage.find_objects(numbers, max_label=len(objects)), start=1):
        label = objects[number - 1][0]
        if where is not None and label.removesuffix(_GROUP) in CLASSES:
            rows, columns = where
            box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
            found.append((label, box, int(areas[number])))
    return found
