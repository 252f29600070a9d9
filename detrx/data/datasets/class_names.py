"""What the classes of a dataset are called."""

import os

from detrx.d2.data import MetadataCatalog

from .custom import read_categories


def class_names_of(dataset: str) -> list[str]:
    """Names of a dataset's classes by index, from its metadata or else its annotation file; [] if neither tells.

    Raises:
        ValueError: the annotation file is no COCO file.
    """
    metadata = MetadataCatalog.get(dataset)
    if (names := metadata.get("thing_classes")) is not None:
        return list(names)
    file = metadata.get("json_file")
    return list(read_categories(file).values()) if file is not None and os.path.isfile(file) else []
