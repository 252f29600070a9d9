"""Registered datasets by name: whether there is one, what is in it, and what its classes are called."""

import difflib
import os

from detrx.coco.records import read_categories
from detrx.d2.data import DatasetCatalog, MetadataCatalog
from detrx.errors import InvalidInputError

from .coco import load_coco

__all__ = ["check_registered", "class_names_of", "load_registered"]


_COCO_READERS = ("detectron2.data.datasets.coco", "detrx.d2.embedded.data_coco")


def check_registered(names: list[str]) -> None:
    """Raise a ValueError, which lists similar names, if one of these is not that of a registered dataset."""
    for name in names:
        if name not in DatasetCatalog:
            known = sorted(DatasetCatalog)
            near = difflib.get_close_matches(name, known, n=3) or known
            raise InvalidInputError(f"dataset {name!r} is not registered; did you mean one of: {', '.join(near)}?")


def load_registered(name: str) -> list[dict]:
    """The dataset dicts of a registered dataset.

    COCO files are read by `load_coco` also where `register_coco_instances` of Detectron2 or of the embedded core has
    registered them, so that the records do not depend on it.
    """
    metadata = MetadataCatalog.get(name)
    if getattr(DatasetCatalog[name], "__module__", None) in _COCO_READERS and metadata.get("evaluator_type") == "coco":
        return load_coco(metadata.json_file, metadata.image_root, name)
    return DatasetCatalog.get(name)


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
