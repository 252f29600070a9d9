"""Detection in a few lines: a trained model, what prepares its images, and the names of its classes.

predictor = Predictor.from_config("dino/dino_r50.py", "model_final.pth")
instances = predictor("street.jpg")
predictor.draw("street.jpg", instances).save("detections.png")
"""

import copy
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from detrx.analysis.visualize import Box, class_colour, class_name, draw_boxes
from detrx.coco.results import instances_on_host
from detrx.config_zoo import read_config
from detrx.d2.config import instantiate
from detrx.d2.structures import Instances
from detrx.data import class_names_of, read_image, upright_rgb
from detrx.data.bad_files import UNREADABLE
from detrx.engine.config import override_config
from detrx.engine.trained import load_model
from detrx.errors import InvalidInputError, MissingImportError

if TYPE_CHECKING:
    import supervision

__all__ = ["Predictor", "as_pil_image"]

ImageLike: TypeAlias = str | os.PathLike | Image.Image | np.ndarray | Tensor
Record: TypeAlias = dict[str, Any]


class Predictor:
    """Finds objects in images.

    Args:
        model: takes Detectron2's `list[dict]`; put into evaluation mode.
        mapper: dataset dict -> what the model takes (`detrx.data.DetectionMapper`).
        class_names: by class index; classes beyond them are called by their number.
        score_threshold: detections with a lower score are left out.
        batch_size: images that the model gets at once.

    Raises:
        ValueError: `batch_size` is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        mapper: Callable[[Record], Record],
        class_names: Sequence[str] = (),
        score_threshold: float = 0.3,
        batch_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise InvalidInputError(f"batch_size must be 1 or more, got {batch_size}")
        self.model = model.eval()
        self.mapper = mapper
        self.class_names = list(class_names)
        self.score_threshold = score_threshold
        self.batch_size = batch_size

    @classmethod
    def from_config(
        cls,
        config: Any,
        weights: str | os.PathLike,
        *,
        device: str = "auto",
        score_threshold: float = 0.3,
        batch_size: int = 1,
        overrides: Sequence[str] = (),
    ) -> "Predictor":
        """The predictor of a trained model, which sees images as the config's test loader prepares them.

        Args:
            config: the config that it was trained with: a file, a name of `detrx.model_zoo` ("dino/dino_r50.py"), or
                one that is loaded.
            weights: checkpoint; its averaged weights, if it has any.
            device: "cpu", "cuda", ...; "auto": a GPU if there is one.
            overrides: `key=value` changes to the config.

        Raises:
            ConfigError, FileNotFoundError: there is no such config, or an override does not fit it.
            CheckpointError: there is no such checkpoint, or it is of another model.
        """
        named = isinstance(config, (str, os.PathLike))
        cfg = override_config(read_config(config) if named else copy.deepcopy(config), list(overrides))
        mapper = instantiate(cfg.dataloader.test.mapper)
        datasets = cfg.dataloader.test.dataset.names
        names = class_names_of(datasets if isinstance(datasets, str) else datasets[0])
        return cls(load_model(cfg, os.fspath(weights), device), mapper, names, score_threshold, batch_size)

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Instances | list[Instances]:
        """Detections in one image, or in each of several.

        Args:
            images: a path, a PIL image, an array (H, W, 3) uint8 RGB, or a tensor (3, H, W) RGB, uint8 or floating
                point in [0, 1]; or a list of these, of any sizes, or a batch (N, H, W, 3) or (N, 3, H, W).

        Returns:
            For one image, its `Instances` on the CPU: `pred_boxes` (xyxy in pixels of that image), `scores`,
            `pred_classes` and `pred_queries`, by falling score; otherwise a list of them.

        Raises:
            TypeError, ValueError: an image is none of these.
            FileNotFoundError, ValueError: an image file does not exist, or cannot be read; names it.
        """
        if isinstance(images, Sequence) and not isinstance(images, str):
            return self._detect(images)
        if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
            return self._detect(images)
        return self._detect([images])[0]

    def _detect(self, images: Iterable[ImageLike]) -> list[Instances]:
        pictures = ({"image": as_pil_image(image)} for image in images)
        return [instances for _, instances in self.stream(pictures)]

    def stream(
        self, records: Iterable[Record], skip: Callable[[Exception], None] | None = None
    ) -> Iterator[tuple[Record, Instances]]:
        """Every dataset dict (with a `file_name`, or a PIL image as `image`) with its detections, batch by batch.

        Args:
            skip: called with the error of an image that cannot be read, which is then left out; None: it is raised.
        """
        inputs = self._readable(records, skip)
        while batch := list(itertools.islice(inputs, self.batch_size)):
            with torch.no_grad():
                outputs = self.model([mapped for _, mapped in batch])
            found = instances_on_host([output["instances"] for output in outputs])
            for (record, _), instances in zip(batch, found, strict=True):
                yield record, instances[instances.scores >= self.score_threshold]

    def _readable(
        self, records: Iterable[Record], skip: Callable[[Exception], None] | None
    ) -> Iterator[tuple[Record, Record]]:
        """Dataset dicts and what the mapper makes of them."""
        for record in records:
            try:
                mapped = self.mapper(record)
            except UNREADABLE as error:
                if skip is None:
                    raise
                skip(error)
                continue
            yield record, mapped

    def name_of(self, index: int) -> str:
        """Name of a class; its number, if there is none."""
        return class_name(index, self.class_names)

    def draw(self, image: ImageLike, instances: Instances, min_side: int = 480) -> Image.Image:
        """The image with its detections, the best on top, enlarged by a whole factor until its shorter side has
        `min_side` pixels."""
        boxes, classes = instances.pred_boxes.tensor.tolist(), instances.pred_classes.tolist()
        drawn = [
            Box(tuple(boxes[i]), f"{self.name_of(classes[i])} {instances.scores[i]:.2f}", class_colour(classes[i]))
            for i in instances.scores.argsort(stable=True).tolist()
        ]
        return draw_boxes(as_pil_image(image), drawn, min_side)

    def to_dict(self, instances: Instances) -> dict[str, list]:
        """Detections in plain lists of one length: `boxes` (xyxy in pixels), `scores`, `class_ids` (indices) and
        `names`."""
        classes = instances.pred_classes.tolist()
        return {
            "boxes": instances.pred_boxes.tensor.tolist(),
            "scores": instances.scores.tolist(),
            "class_ids": classes,
            "names": [self.name_of(index) for index in classes],
        }

    def to_supervision(self, instances: Instances) -> "supervision.Detections":
        """Detections for the `supervision` package, with the names of their classes in `data["class_name"]`.

        Raises:
            ImportError: it is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise MissingImportError(
                f"to_supervision needs the package supervision: pip install supervision ({error})"
            ) from error
        classes = instances.pred_classes.numpy()
        return Detections(
            xyxy=instances.pred_boxes.tensor.numpy(),
            confidence=instances.scores.numpy(),
            class_id=classes,
            data={"class_name": np.array([self.name_of(index) for index in classes.tolist()], dtype=str)},
        )


def as_pil_image(image: ImageLike) -> Image.Image:
    """Anything that `Predictor` takes for one image, as an upright RGB image of PIL.

    Raises:
        TypeError, ValueError: it is something else, or not RGB.
        FileNotFoundError, ValueError: a file does not exist, or cannot be read; names it.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(os.fspath(image))
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    if isinstance(image, Tensor):
        return Image.fromarray(_array_of(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise InvalidInputError(f"an image array must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
        return Image.fromarray(np.ascontiguousarray(image))
    raise TypeError(f"an image must be a path, a PIL image, an array or a tensor, got {type(image).__name__}")


def _array_of(image: Tensor) -> np.ndarray:
    """(3, H, W) -> (H, W, 3) uint8."""
    if image.ndim != 3 or image.shape[0] != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise InvalidInputError(
            f"an image tensor must be (3, H, W), uint8 or floating point, got {image.dtype} {tuple(image.shape)}"
        )
    image = image.detach().cpu()
    if image.is_floating_point():
        if not 0 <= float(image.min()) <= float(image.max()) <= 1:
            low, high = float(image.min()), float(image.max())
            raise InvalidInputError(f"an image tensor in floating point must be in [0, 1], got [{low:g}, {high:g}]")
        image = (image.float() * 255).round().to(torch.uint8)
    return image.permute(1, 2, 0).contiguous().numpy()
