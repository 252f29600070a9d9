"""Datasets that are registered when `detrx.data` is imported: digits, digits_large, digits_hard, and COCO 2017."""

import functools
import os
from pathlib import Path

from detrx.d2.data import DatasetCatalog, Metadata, MetadataCatalog

from .coco import load_coco
from .coco_classes import COCO_CATEGORIES
from .digits import CLASSES, SPLITS, VARIANTS, prepare


def datasets_root() -> Path:
    """The folder that holds all datasets: $DETECTRON2_DATASETS; where that is not set, or empty, ./datasets."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


class DigitsMetadata(Metadata):
    """Metadata whose paths can be asked for before the data exist: asking generates them.

    Evaluators open `json_file` when they are built, possibly before any loader.
    """

    @property
    def json_file(self) -> str:
        return str(self._folder() / "annotations" / f"{self.split}.json")

    @property
    def image_root(self) -> str:
        return str(self._folder() / self.split)

    def _folder(self) -> Path:
        return prepare(datasets_root() / self.variant, VARIANTS[self.variant])


def register_builtin() -> None:
    """Register what is not registered yet. Touches no file: data are read, or generated, when first asked for."""
    for variant in VARIANTS:
        for split in SPLITS:
            name = f"{variant}_{split}"
            if name not in DatasetCatalog:
                DatasetCatalog.register(name, functools.partial(_load_digits, name))
                MetadataCatalog[name] = DigitsMetadata(
                    name=name,
                    variant=variant,
                    split=split,
                    evaluator_type="coco",
                    thing_classes=list(CLASSES),
                    thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(CLASSES))},
                )
    for split in ("train", "val"):
        name = f"coco_2017_{split}"
        if name not in DatasetCatalog:  # Detectron2 has it already
            json_file = datasets_root() / "coco" / "annotations" / f"instances_{split}2017.json"
            image_root = datasets_root() / "coco" / f"{split}2017"
            DatasetCatalog.register(name, functools.partial(load_coco, json_file, image_root, name))
            MetadataCatalog.get(name).set(
                json_file=str(json_file),
                image_root=str(image_root),
                evaluator_type="coco",
                thing_classes=list(COCO_CATEGORIES.values()),
                thing_dataset_id_to_contiguous_id={i: k for k, i in enumerate(COCO_CATEGORIES)},
            )


def _load_digits(name: str) -> list[dict]:
    metadata = MetadataCatalog.get(name)
    return load_coco(metadata.json_file, metadata.image_root, name)
