"""Datasets, augmentation and loaders. Importing the package registers the builtin datasets.

`datasets` reads datasets as they are published, `check` finds what is wrong with one, `convert` turns YOLO and Pascal
VOC folders into COCO files, and `digits` generates handwritten digits. `dataset_dicts` returns the records of
registered datasets, `images` and `video` decode their files, and `bad_files` collects those that cannot be read.
`transforms` augments an image with its boxes, `mapper` turns a record into the input of a model, `batch` and `loader`
form batches, and `prefetch` uploads them.
"""

from .dataset_dicts import get_detection_dataset_dicts
from .datasets.builtin import datasets_root, register_builtin
from .datasets.coco import load_coco
from .datasets.registered import class_names_of
from .images import read_image, upright_rgb
from .loader import TrainLoader, build_test_loader, build_train_loader
from .mapper import DetectionMapper
from .prefetch import Prefetcher
from .transforms import (
    FixedSizeCrop,
    RandomSizeCrop,
    ResizeLongestSide,
    ResizeShortestSide,
    ScaleJitter,
    detr_augmentation,
    digits_augmentation,
    lsj_augmentation,
    resize_augmentation,
)

__all__ = [
    "DetectionMapper",
    "FixedSizeCrop",
    "Prefetcher",
    "RandomSizeCrop",
    "ResizeLongestSide",
    "ResizeShortestSide",
    "ScaleJitter",
    "TrainLoader",
    "build_test_loader",
    "build_train_loader",
    "class_names_of",
    "datasets_root",
    "detr_augmentation",
    "digits_augmentation",
    "get_detection_dataset_dicts",
    "load_coco",
    "lsj_augmentation",
    "read_image",
    "register_builtin",
    "resize_augmentation",
    "upright_rgb",
]

register_builtin()
