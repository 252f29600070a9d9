"""From a dataset dict to what the models take: reading the image, augmenting, and cleaning up the boxes."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image, ImageOps

from detrx.d2.structures import Boxes, BoxMode, Instances
from detrx.d2.utils import PathManager


class DetectionMapper:
    """Map a dataset dict to a model input.

    Its image is read from `file_name`, unless the dict holds one itself, as a PIL image under `image`. The result has
    `image` ((3, H, W) uint8 RGB), `height` and `width` (of the image in the file, the frame in which detections are
    reported), `image_id`, `file_name`, and in training `instances` with `gt_boxes` (XYXY in pixels of `image`, clipped
    to it) and `gt_classes` (int64). Crowd annotations and boxes that augmentation pushed out of the image are left out.

    Args:
        is_train: whether to add `instances`.
        augmentations: a callable on samples as `detrx.data.transforms` describes them, or None.
        min_box_size: boxes with a side of at most this many pixels, after augmentation, are left out.
    """

    def __init__(
        self,
        is_train: bool,
        augmentations: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        min_box_size: float = 1e-5,
    ) -> None:
        self.is_train = is_train
        self.augmentations = augmentations
        self.min_box_size = min_box_size

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Raises FileNotFoundError or ValueError, naming the file, for an image that is missing, broken or of another
        size than annotated."""
        from torchvision import tv_tensors
        from torchvision.transforms.v2 import functional as F

        record = dict(dataset_dict)
        annotations = [a for a in record.pop("annotations", []) if not a.get("iscrowd", 0)]
        picture = upright_rgb(record["image"]) if "image" in record else read_image(record["file_name"])
        width, height = picture.size
        expected = record.setdefault("height", height), record.setdefault("width", width)
        if (height, width) != expected:
            raise ValueError(
                f"image {record.get('file_name', 'in memory')} is {width} x {height} (width x height), "
                f"but its annotation says {expected[1]} x {expected[0]}"
            )

        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        sample = {
            "image": tv_tensors.Image(F.pil_to_tensor(picture)),
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        }
        if self.augmentations is not None:
            sample = self.augmentations(sample)
        record["image"] = sample["image"].as_subclass(torch.Tensor).contiguous()
        if self.is_train:
            instances = Instances(tuple(record["image"].shape[-2:]))
            instances.gt_boxes = Boxes(sample["boxes"].as_subclass(torch.Tensor))
            instances.gt_classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
            instances.gt_boxes.clip(instances.image_size)
            record["instances"] = instances[instances.gt_boxes.nonempty(self.min_box_size)]
        return record


def read_image(file_name: str) -> Image.Image:
    """Read an image file as RGB, upright (as its EXIF orientation says).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded: truncated, broken, or not an image.
    """
    try:
        with PathManager.open(file_name, "rb") as file, Image.open(file) as picture:
            return upright_rgb(picture)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"image {file_name} does not exist") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {file_name} cannot be read: {error}") from error


def upright_rgb(picture: Image.Image) -> Image.Image:
    """A PIL image of any mode as RGB, turned as its EXIF orientation says."""
    return ImageOps.exif_transpose(picture).convert("RGB")
