"""The meta-architecture of all detection transformers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detrx.d2.modeling import META_ARCH_REGISTRY, detector_postprocess
from detrx.d2.structures import Boxes, ImageList, Instances
from detrx.layers import cxcywh_to_xyxy

from .criterion import Criterion
from .queries import Predictions
from .targets import Targets


@META_ARCH_REGISTRY.register()
class DetectionTransformer(nn.Module):
    """Backbone, neck, encoder, query source and decoder; takes Detectron2's `list[dict]`.

    Args:
        backbone: images (B, 3, H, W) -> feature maps by name.
        neck: feature maps by name -> list of maps of one width.
        tokenizer: maps -> token sequence with positions.
        encoder: token sequence -> token sequence.
        query_source: encoded tokens -> main query group, and the encoder's own predictions.
        decoder: query groups -> predictions.
        criterion: predictions and ground truth -> losses; only needed for training.
        pixel_mean, pixel_std: normalisation of the 0..255 RGB input.
        num_detections: (query, class) pairs returned per image, highest scores first; no NMS.
        mask_padding: keep attention, positions and references off the padding of smaller images in a batch.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        tokenizer: nn.Module,
        encoder: nn.Module,
        query_source: nn.Module,
        decoder: nn.Module,
        criterion: Criterion | None,
        pixel_mean: Sequence[float] = (123.675, 116.280, 103.530),
        pixel_std: Sequence[float] = (58.395, 57.120, 57.375),
        num_detections: int = 100,
        mask_padding: bool = True,
    ):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.query_source = query_source
        self.decoder = decoder
        self.criterion = criterion
        self.num_detections = num_detections
        self.mask_padding = mask_padding
        self.register_buffer("pixel_mean", torch.tensor(tuple(pixel_mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(tuple(pixel_std)).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """
        Args:
            batched_inputs: per image "image" (3, H, W) in 0..255 RGB; in training "instances" with `gt_boxes` (xyxy in
                pixels of "image") and `gt_classes`; for inference optionally "height" and "width" of the output frame.

        Returns:
            training: weighted losses by name. Otherwise per image {"instances": Instances} with `pred_boxes` (xyxy in
            pixels of the output frame), `scores` and `pred_classes`, by falling score.
        """
        images = self.preprocess(batched_inputs)
        predictions = self.predict(images.tensor, self.padding_mask(images))
        if self.training:
            instances = [each["instances"] for each in batched_inputs]
            image_ids = [each.get("image_id", index) for index, each in enumerate(batched_inputs)]
            return self.criterion(predictions, Targets.from_instances(instances, image_ids, self.device))
        results = []
        for each, image_size, found in zip(
            batched_inputs, images.image_sizes, self.detections(predictions["main"], images.image_sizes), strict=True
        ):
            height, width = each.get("height", image_size[0]), each.get("width", image_size[1])
            results.append({"instances": detector_postprocess(found, height, width)})
        return results

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the images and pad them at the right and bottom to the largest height and width."""
        images = [(each["image"].to(self.device) - self.pixel_mean) / self.pixel_std for each in batched_inputs]
        return ImageList.from_tensors(images)

    def padding_mask(self, images: ImageList) -> Tensor | None:
        """(B, H, W) bool, True for padding; None if there is none, or padding is not to be masked."""
        height, width = images.tensor.shape[-2:]
        if not self.mask_padding or all(tuple(size) == (height, width) for size in images.image_sizes):
            return None
        sizes = torch.tensor(images.image_sizes, device=self.device)
        below = torch.arange(height, device=self.device) >= sizes[:, :1]
        right = torch.arange(width, device=self.device) >= sizes[:, 1:]
        return below[:, :, None] | right[:, None, :]

    def predict(self, images: Tensor, padding_mask: Tensor | None) -> dict[str, Predictions]:
        """Normalised, padded images (B, 3, H, W) -> predictions of the decoder's groups and of the encoder by name."""
        memory = self.encoder(self.tokenizer(self.neck(self.backbone(images)), padding_mask))
        group, predictions = self.query_source(memory)
        return predictions | self.decoder([group], memory)

    def detections(self, predictions: Predictions, image_sizes: Sequence[tuple[int, int]]) -> list[Instances]:
        """The highest scores of the last layer, as boxes in pixels of the (unpadded) input images."""
        logits, boxes = predictions.logits[-1].float(), predictions.boxes[-1].float()
        num_classes = logits.shape[-1]
        scores, index = logits.sigmoid().flatten(1).topk(min(self.num_detections, logits[0].numel()), dim=1)
        boxes = cxcywh_to_xyxy(boxes).gather(1, (index // num_classes)[..., None].expand(-1, -1, 4))
        results = []
        for image_scores, image_classes, image_boxes, (height, width) in zip(
            scores, index % num_classes, boxes, image_sizes, strict=True
        ):
            found = Instances((height, width))
            found.pred_boxes = Boxes(image_boxes * image_boxes.new_tensor([width, height, width, height]))
            found.scores = image_scores
            found.pred_classes = image_classes
            results.append(found)
        return results
