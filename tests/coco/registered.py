"""COCO files that are registered for the time of one test."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from detrx.d2.data import DatasetCatalog, MetadataCatalog, register_coco_instances


def coco(images, annotations, categories):
    """A COCO dictionary. `annotations`: (image id, category id, box, further keys)."""
    return {
        "info": {},
        "licenses": [],
        "images": [{"id": i, "file_name": f"{i}.png", "height": 100, "width": 200} for i in images],
        "annotations": [
            {"id": k + 1, "image_id": i, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, **extra}
            for k, (i, c, box, extra) in enumerate(annotations)
        ],
        "categories": [{"id": i, "name": name} for i, name in categories.items()],
    }


def write_images(folder: Path, images):
    """Noise as the images of a `coco` dictionary, where `registering` looks for them."""
    (folder / "images").mkdir()
    for i in images:
        Image.effect_noise((200, 100), 80).convert("RGB").save(folder / "images" / f"{i}.png")


@contextmanager
def registering(folder: Path) -> Iterator[Callable[[str, dict | str], str]]:
    """A function that writes a COCO file to a folder, registers it, and returns its name."""
    names = []

    def add(name, content):
        path = folder / f"{name}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        names.append(name)
        register_coco_instances(name, {}, str(path), str(folder / "images"))
        return name

    try:
        yield add
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
