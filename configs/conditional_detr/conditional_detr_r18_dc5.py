"""Conditional DETR: ResNet-18 DC5, 12 epochs."""

from .conditional_detr_r18 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.model_args = dict(output_stride=16)
