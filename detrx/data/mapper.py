"""From a dataset dict to what the models take: reading the image, augmenting, and cleaning up the boxes."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from detrx.d2.structures import Boxes, BoxMode, Instances
from detrx.errors import InvalidInputError

from .images import ImageNote, annotated_size, as_picture, open_picture

logger = logging.getLogger(__name__)


class DetectionMapper:
    """Map a dataset dict to a model input.

    Its image is read from `file_name`, unless the dict holds one itself, as a PIL image under `image`. The result has
    `image` ((3, H, W) uint8 RGB), `height` and `width` (of the image in the file, the frame in which detections are
    reported), `image_id`, `file_name`, and in training `instances` with `gt_boxes` (XYXY in pixels of `image`, clipped
    to it) and `gt_classes` (int64). Crowd annotations, boxes without area and boxes outside of the image, as annotated
    or after augmentation, are left out.

    `detrx.data.images.open_picture` says how images of all kinds become RGB, and when EXIF orientations are applied.
    Each kind of warning about image files is logged for the first such file only.

    Args:
        is_train: whether to add `instances`.
        augmentations: a callable on samples as `detrx.data.transforms` describes them, or None.
        min_box_size: boxes with a side of at most this many pixels, after augmentation, are left out.
        cache_mib: keep decoded images in memory, up to this many MiB in each process that loads data: for small
            datasets, whose images are not decoded again in every epoch. 0: none.
    """

    def __init__(
        self,
        is_train: bool,
        augmentations: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        min_box_size: float = 1e-5,
        cache_mib: int = 0,
    ) -> None:
        if cache_mib < 0:
            raise InvalidInputError(f"cache_mib must be 0 or more MiB, got {cache_mib}")
        self.is_train = is_train
        self.augmentations = augmentations
        self.min_box_size = min_box_size
        self._warned = _warned_flags(is_train)
        self._decoded: dict[tuple[object, ...], torch.Tensor] = {}
        self._free_bytes = cache_mib * 2**20

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Raises FileNotFoundError or ValueError, naming the file, for an image that is missing, broken or of another
        size than annotated."""
        from torchvision import tv_tensors

        record = dict(dataset_dict)
        annotations = [a for a in record.pop("annotations", []) if not a.get("iscrowd", 0)]
        annotated = annotated_size(record)
        where = record.get("file_name", "in memory")
        image = self._image(record, annotated)
        height, width = image.shape[-2:]
        if annotated not in (None, (width, height)):
            raise InvalidInputError(
                f"image {where} is {width} x {height} (width x height), "
                f"but its annotation says {annotated[0]} x {annotated[1]}"
            )
        record["height"], record["width"] = height, width

        boxes = Boxes(_xyxy(annotations))
        classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
        boxes.clip((height, width))  # here already: augmentation could move what is outside into the picture
        usable = boxes.nonempty(self.min_box_size)
        boxes, classes = boxes.tensor[usable], classes[usable]
        sample = {
            "image": tv_tensors.Image(image),
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        }
        if self.augmentations is not None:
            sample = self.augmentations(sample)
        record["image"] = sample["image"].as_subclass(torch.Tensor).contiguous()
        if self.is_train:
            instances = Instances(tuple(record["image"].shape[-2:]))
            instances.gt_boxes = Boxes(sample["boxes"].as_subclass(torch.Tensor))
            instances.gt_classes = classes
            instances.gt_boxes.clip(instances.image_size)
            record["instances"] = instances[instances.gt_boxes.nonempty(self.min_box_size)]
        return record

    def _image(self, record: dict[str, Any], annotated: tuple[int, int] | None) -> torch.Tensor:
        """The image of a record, (3, H, W) uint8 RGB, decoded or from the cache."""
        from torchvision.transforms.v2 import functional as F

        where = record.get("file_name", "in memory")
        key = (where, annotated)
        if "image" not in record and key in self._decoded:
            return self._decoded[key].clone()  # a batch may be changed, and its memory shared with other processes
        picture = as_picture(record["image"], annotated) if "image" in record else open_picture(where, annotated)
        for note in picture.notes:
            self._warn_once(note, where)
        image = F.pil_to_tensor(picture.image)
        if "image" not in record and image.nbytes <= self._free_bytes:
            self._decoded[key] = image.clone()
            self._free_bytes -= image.nbytes
        return image

    def _warn_once(self, note: ImageNote, file_name: str) -> None:
        flag = list(ImageNote).index(note)
        if not self._warned[flag]:
            self._warned[flag] = True
            logger.warning("image %s: %s (other such images are not reported)", file_name, note.value)


def _xyxy(annotations: list[dict[str, Any]]) -> torch.Tensor:
    """The boxes of annotations, (N, 4) float32 XYXY."""
    kinds = {(a["bbox_mode"], len(a["bbox"])) for a in annotations}
    if kinds == {(BoxMode.XYWH_ABS, 4)}:
        low, size = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).split(2, dim=1)
        return torch.cat([low, low + size], dim=1)
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


@functools.cache
def _warned_flags(is_train: bool) -> torch.Tensor:
    """One flag per kind of note, shared with the workers of all loaders: each of them would warn otherwise."""
    return torch.zeros(len(ImageNote), dtype=torch.bool).share_memory_()
