"""Datasets of one's own: a COCO annotation file and a folder of images for training, and the same for validation."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from detrx.coco.values import Id
from detrx.d2.data import DatasetCatalog, MetadataCatalog
from detrx.errors import InvalidInputError

from .coco import load_coco


@dataclass(frozen=True)
class CustomSplit:
    """One split of a custom dataset; calling it, as `DatasetCatalog` does, loads its dataset dicts.

    Attributes:
        dataset: name of the dataset.
        split: "train" or "val".
        json_file: COCO annotation file, or "" if there is none.
        image_root: folder that the file names in it are relative to.
    """

    dataset: str
    split: str
    json_file: str
    image_root: str

    @property
    def name(self) -> str:
        return f"{self.dataset}_{self.split}"

    def __call__(self) -> list[dict]:
        if not self.json_file:
            raise InvalidInputError(
                f"dataset {self.name!r} has no files: "
                f"give dataset.{self.split}_json=FILE and dataset.{self.split}_images=FOLDER"
            )
        return load_coco(self.json_file, self.image_root, self.name)


def without_files(name: str) -> bool:
    """Whether a dataset is a split of a custom one for which no files were given."""
    split = dict(DatasetCatalog).get(name)
    return isinstance(split, CustomSplit) and not split.json_file


def register_custom(name: str, files: Mapping[str, tuple[str, str]], categories: Mapping[Id, str]) -> None:
    """Register `<name>_train` and `<name>_val`; no file is opened before it is needed.

    A custom dataset that is registered under this name already is replaced.

    Args:
        files: split ("train" or "val") -> annotation file and folder of images, both "" if there is none. Such a split
            has classes, and asking for its images is an error that says what to give.
        categories: class names by category id, ordered by it; classes get their numbers in this order.

    Raises:
        ValueError: another dataset has such a name.
    """
    splits = [CustomSplit(name, split, os.fspath(json), os.fspath(images)) for split, (json, images) in files.items()]
    for split in splits:
        if split.name in DatasetCatalog and not isinstance(DatasetCatalog[split.name], CustomSplit):
            raise InvalidInputError(f"dataset {split.name!r} exists already: choose another dataset.name than {name!r}")
    for split in splits:
        DatasetCatalog.pop(split.name, None)
        MetadataCatalog.pop(split.name, None)
        DatasetCatalog.register(split.name, split)
        paths = {"json_file": split.json_file, "image_root": split.image_root} if split.json_file else {}
        MetadataCatalog.get(split.name).set(
            evaluator_type="coco",
            thing_classes=list(categories.values()),
            thing_dataset_id_to_contiguous_id={category: label for label, category in enumerate(categories)},
            **paths,
        )
