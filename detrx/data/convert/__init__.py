"""Datasets in the formats of other tools, as COCO files. Images stay where they are."""

from .files import DatasetConversionError, read_classes
from .labelled import Labelled, LabelledImage, as_coco, write_coco_files
from .voc import DIFFICULT, VOC_CLASSES, read_voc
from .yolo import read_yolo

__all__ = [
    "DIFFICULT",
    "VOC_CLASSES",
    "DatasetConversionError",
    "Labelled",
    "LabelledImage",
    "as_coco",
    "read_classes",
    "read_voc",
    "read_yolo",
    "write_coco_files",
]
