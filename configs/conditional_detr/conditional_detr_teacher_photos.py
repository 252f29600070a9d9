"""The small Conditional DETR for photographs, on all of EfficientNet-Lite2: the teacher of `projects/d3etr`."""

from ..common.models.photos import efficientnet_lite2 as _backbone
from ..common.models.photos import for_photos
from .conditional_detr_photos import dataloader, lr_multiplier, model, optimizer, train

_backbone.out_features = ["res5"]
_backbone.model_args = dict(output_stride=16)
for_photos(model, _backbone)
