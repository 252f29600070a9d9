"""The exported part of a detector: from images to a fixed number of detections."""

import copy

import torch
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.layers import cxcywh_to_xyxy, to_device
from detrx.modeling import DetectionTransformer


class DetectionGraph(nn.Module):
    """A detector without its methods, for batches of images of one size.

    It includes normalisation. Unlike `DetectionTransformer`, it keeps empty boxes, so that the number of detections is
    fixed.

    Args:
        model: detector in evaluation mode; its modules are shared, not copied.

    Raises:
        ValueError: the model is in training mode.
    """

    NAMES = ("boxes", "scores", "labels")

    def __init__(self, model: DetectionTransformer):
        super().__init__()
        if model.training:
            raise InvalidInputError("DetectionGraph needs a model in evaluation mode: call model.eval() first")
        detector = copy.copy(model)
        detector._modules = {**model._modules, "methods": nn.ModuleList()}
        self.detector = detector
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            images: (B, 3, H, W) RGB in 0..255, uint8 or float.

        Returns:
            boxes (B, N, 4) xyxy in pixels of the images, clipped to them; scores (B, N) in [0, 1], in descending
            order; labels (B, N) int64, class indices.
        """
        height, width = images.shape[-2:]
        model = self.detector
        main = model.predict(model.normalise(images), None)["main"]
        scores, queries, labels = model.postprocess.select(model.postprocess.scores(main))
        boxes = cxcywh_to_xyxy(main.boxes[-1].float()).clamp(0, 1)
        boxes = boxes.gather(1, queries[..., None].expand(-1, -1, 4))
        size = to_device(torch.tensor([width, height, width, height]), boxes.device)
        return boxes * size, scores, labels
