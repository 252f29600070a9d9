"""A small Conditional DETR for photographs, on EfficientNet-Lite0 up to stride 16: the student of `projects/d3etr`."""

from ..common.models.photos import efficientnet_lite0 as _backbone
from ..common.models.photos import for_photos
from ..common.photos_training import dataloader, lr_multiplier, optimizer, train
from .conditional_detr_digits import model

_backbone.out_features = ["res4"]
for_photos(model, _backbone)
train.ema.warmup = 500
