"""Datasets that are registered when `detrx.data` is imported: digits, COCO 2017, LVIS v1, Objects365 v2, nuImages and
Cityscapes."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detrx.coco.classes import COCO_CATEGORIES
from detrx.d2.data import DatasetCatalog, Metadata, MetadataCatalog
from detrx.data.digits import CLASSES, SPLITS, VARIANTS, prepare

from . import cityscapes, lvis, nuimages, objects365
from .coco import load_coco
from .file_classes import FileClasses
from .lazy_metadata import LazyMetadata
from .sources import check_image_root


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
        _register_annotated(
            name,
            f"coco/annotations/instances_{split}2017.json",
            f"coco/{split}2017",
            functools.partial(load_coco, name=name),
            thing_classes=list(COCO_CATEGORIES.values()),
            thing_dataset_id_to_contiguous_id={i: k for k, i in enumerate(COCO_CATEGORIES)},
        )

    lvis_classes = lvis.lvis_classes(datasets_root)
    for split, file in lvis.FILES.items():
        load = functools.partial(lvis.load_lvis, classes=lvis_classes)
        _register_annotated(f"lvis_v1_{split}", file, "coco", load, lvis_classes, evaluator_type="lvis")
    objects_classes = objects365.objects365_classes(datasets_root)
    for split, file in objects365.FILES.items():
        load = functools.partial(objects365.load_objects365, classes=objects_classes)
        _register_annotated(f"objects365_v2_{split}", file, f"objects365/{split}", load, objects_classes)
    for split in nuimages.SPLITS:
        to_coco = functools.partial(nuimages.nuimages_file, split=split)
        _register_converted(f"nuimages_{split}", "nuimages", "", nuimages.CLASSES, to_coco, images="samples")
    for split in cityscapes.SPLITS:
        to_coco = functools.partial(cityscapes.cityscapes_file, split=split)
        _register_converted(f"cityscapes_{split}", "cityscapes", f"leftImg8bit/{split}", cityscapes.CLASSES, to_coco)


def _register_annotated(
    name: str,
    json_file: str,
    image_root: str,
    load: Callable[[Path, Path], list[dict]],
    classes: FileClasses | None = None,
    evaluator_type: str = "coco",
    **facts: Any,
) -> None:
    """Register a dataset in COCO's format. Paths are relative to `datasets_root` at the time that they are asked for.

    Args:
        load: returns the dataset dicts for the file and the folder.
        classes: for a dataset whose classes only its annotation file knows.
        facts: further metadata.
    """
    if name in DatasetCatalog:  # Detectron2 has COCO and LVIS, below the root that it found when it was imported
        return
    DatasetCatalog.register(name, lambda: load(datasets_root() / json_file, datasets_root() / image_root))
    lazy: dict[str, Callable[[], Any]] = {
        "json_file": lambda: str(datasets_root() / json_file),
        "image_root": lambda: str(datasets_root() / image_root),
    }
    if classes is not None:
        lazy |= {"thing_classes": classes.names, "thing_dataset_id_to_contiguous_id": classes.ids}
    MetadataCatalog[name] = LazyMetadata(lazy, name=name, evaluator_type=evaluator_type, **facts)


def _register_converted(
    name: str, folder: str, image_root: str, classes: Sequence[str], to_coco: Callable[[Path], Path], images: str = ""
) -> None:
    """Register a dataset in a format of its own.

    Args:
        folder: of the dataset, relative to `datasets_root`.
        image_root: what file names of images are relative to, itself relative to `folder`.
        to_coco: returns the COCO file for the folder.
        images: the folder of the images in `image_root`, if they are not in different ones.
    """
    if name in DatasetCatalog:
        return

    def load() -> list[dict]:
        metadata = MetadataCatalog.get(name)
        json_file = metadata.json_file
        check_image_root(Path(json_file), Path(metadata.image_root) / images)
        return load_coco(json_file, metadata.image_root, name)

    DatasetCatalog.register(name, load)
    lazy = {
        "json_file": lambda: str(to_coco(datasets_root() / folder)),
        "image_root": lambda: str(datasets_root() / folder / image_root),
    }
    MetadataCatalog[name] = LazyMetadata(
        lazy,
        name=name,
        evaluator_type="coco",
        thing_classes=list(classes),
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(classes))},
    )


def _load_digits(name: str) -> list[dict]:
    metadata = MetadataCatalog.get(name)
    return load_coco(metadata.json_file, metadata.image_root, name)
