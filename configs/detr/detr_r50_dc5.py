"""DETR: ResNet-50 DC5, 12 epochs."""

from .detr_r50 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.model_args = dict(output_stride=16)
